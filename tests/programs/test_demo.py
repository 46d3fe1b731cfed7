"""scripts/demo.sh: which programs it runs, with which flags. A stub prints them."""

import os
import shutil
import subprocess

import pytest

from tests.conftest import ROOT

KINDS = ["align", "avss", "classify", "describe", "ground", "ms3", "refer", "s4"]


PYTHON = r"""#!/bin/sh
echo "run: $*"
for flag; do
  case $flag in
    --workdir=*) workdir=${flag#*=} ;;
    --config.train.steps=*) steps=${flag#*=} ;;
    --config.train.final_splits=*) reports=no ;;
  esac
done
[ -n "$workdir" ] && [ -z "$STOPPED" ] || exit 0
[ -n "$reports" ] || mkdir -p "$workdir/evaluation"
[ -z "$steps" ] || mkdir -p "$workdir/checkpoints/$steps"
"""


@pytest.fixture
def project(tmp_path):
    """A folder with the scripts, empty recipes, and a "python" that prints its flags.

    It leaves the folders of a training, unless that is STOPPED.
    """
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts", ignore=shutil.ignore_patterns("*.py"))
    (tmp_path / "configs").mkdir()
    for kind in KINDS:
        (tmp_path / "configs" / f"{kind}_x.py").touch()
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    wanted = subprocess.run(
        ["cksum", "setup.py", "pyproject.toml"], cwd=tmp_path, capture_output=True, text=True
    )
    (tmp_path / ".venv" / "installed").write_text(wanted.stdout)
    return tmp_path


def demo(project, recipe, seed=0, arguments=(), **variables):
    """Exit status, programs with their flags, and errors of a demo."""
    variables |= {"CONFIG": recipe, "SEED": str(seed), "PYTHON": "true"}
    done = subprocess.run(
        ["bash", "scripts/demo.sh", *arguments],
        cwd=project,
        env=os.environ | variables,
        capture_output=True,
        text=True,
    )
    runs = [line[5:] for line in done.stdout.splitlines() if line.startswith("run: ")]
    return done.returncode, runs, done.stderr


def test_every_kind_is_here():
    assert sorted(path.stem for path in (ROOT / "scripts" / "demos").glob("*.sh")) == KINDS


def test_generates_builds_trains_and_predicts(project):
    videos = project / "demo" / "clips" / "raw_videos" / "test"
    videos.mkdir(parents=True)
    (videos / "test_1.mp4").touch()
    status, runs, errors = demo(project, "s4_x", seed=3)
    assert status == 0, errors
    assert runs == [
        "scripts/make_clips.py --output=demo/clips --setting=s4",
        "scripts/build_dataset.py --dataset=avsbench_s4 --manual_dir=demo/clips"
        " --data_dir=demo/tfds",
        "-m avs_jax.main --config=configs/s4_x.py:demo --config.seed=3"
        " --config.data.data_dir=demo/tfds --workdir=demo/s4_x-seed3",
        "-m avs_jax.predict --checkpoint=demo/s4_x-seed3"
        " --video=demo/clips/raw_videos/test/test_1.mp4 --output=demo/s4_x-seed3/prediction",
    ]


@pytest.mark.parametrize(
    "recipe, first", [("avss_x", "s4_x"), ("ms3_x", "s4_x"), ("ms3_vct_divided", "s4_vct")]
)
def test_starts_from_another_demo(project, recipe, first):
    for clips in ("clips", "clips_avss", "clips_ms3"):
        (project / "demo" / clips).mkdir(parents=True)
    for name in (recipe, first):
        (project / "configs" / f"{name}.py").touch()
    status, runs, errors = demo(project, recipe)
    assert status == 0, errors
    trainings = [run for run in runs if "avs_jax.main" in run]
    assert [run.split("--workdir=")[1] for run in trainings] == [
        f"demo/{first}-seed0",
        f"demo/{recipe}-seed0 --config.train.init_from=demo/{first}-seed0",
    ]


def test_starts_from_nothing(project):
    """Although other recipes on the same clips start from S4's."""
    (project / "demo" / "clips_refer").mkdir(parents=True)
    (project / "configs" / "refer_sam2.py").touch()
    status, runs, errors = demo(project, "refer_sam2")
    assert status == 0, errors
    assert "--output=demo/clips_refer" in runs[0] and not any("init_from" in run for run in runs)


def test_records_of_a_kind_are_trained_on(project):
    """Wherever the recipe's own variant looks for them."""
    (project / "demo" / "clips_twins").mkdir(parents=True)
    _, runs, _ = demo(project, "classify_x")
    folder = "demo/tfds_twins"
    assert runs[1].endswith(f"--data_dir={folder}") and f".data_dir={folder} --work" in runs[2]


def test_synchrony_has_tracks(project):
    (project / "demo" / "clips").mkdir(parents=True)
    (project / "configs" / "s4_sync.py").touch()
    _, runs, _ = demo(project, "s4_sync")
    assert "--output=demo/tracks --source=track" in runs[1]
    assert runs[2].endswith("--data_dir=demo/tfds_tracks --track_dir=demo/tracks")
    assert "data_dir=demo/tfds_tracks" in runs[3]


def test_an_expression_may_hold_spaces(project):
    clips = project / "demo" / "clips_refer"
    (clips / "videos").mkdir(parents=True)
    (clips / "videos" / "test_s_0.mp4").touch()
    (project / "demo" / "s4_ama-seed0" / "evaluation").mkdir(parents=True)  # it starts from that
    rows = ["vid,uid,split,fid,exp", "test_s_0,a,test_s,1,the red star", "train_0,b,train,0,no"]
    (clips / "metadata.csv").write_text("\n".join(rows) + "\n")
    status, runs, errors = demo(project, "refer_x")
    assert status == 0, errors
    assert "--text=the red star --output=" in runs[-1]


def test_the_reader_of_descriptions_lends_its_backbones(project):
    masks = project / "demo" / "clips_refer" / "gt_mask" / "test_s_0"
    for fid in ("fid_2", "fid_1"):
        (masks / fid).mkdir(parents=True)
    (project / "demo" / "clips_refer" / "videos").mkdir()
    (project / "demo" / "clips_refer" / "videos" / "test_s_0.mp4").touch()
    reader = "demo/refer_cma-seed0"
    (project / reader / "evaluation").mkdir(parents=True)
    status, runs, errors = demo(project, "describe_x")
    assert status == 0, errors
    assert runs[2].endswith(
        f"--config.init.backbone={reader} --config.init.audio_backbone={reader}"
    )
    assert "--masks=demo/clips_refer/gt_mask/test_s_0/fid_1 --output=" in runs[-2]
    assert runs[-1] == (
        "scripts/check_descriptions.py --checkpoint=demo/describe_x-seed0"
        " --refer=demo/refer_cma-seed0 --output=demo/describe_x-seed0/check.json"
    )


@pytest.mark.parametrize("recipe", ["track_x", "s4_y"])
def test_a_recipe_without_a_demo_is_refused(project, recipe):
    status, runs, errors = demo(project, recipe)
    assert status == 1 and not runs
    assert f"CONFIG={recipe}: no demo" in errors and "align avss classify" in errors


def test_a_recipe_as_an_argument_is_refused(project):
    status, runs, err = demo(project, "s4_x", arguments=["ms3_x"])
    assert status == 1 and not runs and "takes no arguments; CONFIG=ms3_ama" in err


@pytest.mark.parametrize("recipe", ["s4_x", "refer_cma"])
def test_a_training_that_was_asked_to_stop_ends_the_demo(project, recipe):
    (project / "configs" / "refer_cma.py").touch()
    (project / "demo" / "s4_ama-seed0" / "evaluation").mkdir(parents=True)
    status, runs, err = demo(project, recipe, STOPPED="1")
    assert status == 1 and "stopped before its end; run this again to resume" in err
    assert "avs_jax.main" in runs[-1]


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").rglob("*.sh")), ids=lambda p: p.name)
def test_no_reader_closes_a_pipe_early(script):
    """After `sort | head -n 1`, sort now and then dies of SIGPIPE, and pipefail ends the script."""
    assert "| head" not in script.read_text()
