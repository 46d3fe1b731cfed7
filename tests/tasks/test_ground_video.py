"""Task `ground` on videos: features, records, prediction with text, reports by domain."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from avs_jax import main as program
from avs_jax import predict
from avs_jax.data import video
from avs_jax.data.records import open_records
from avs_jax.generate.datasets import write_clips
from avs_jax.programs import build_dataset
from avs_jax.runtime.checkpoint import save_variables
from avs_jax.runtime.step import init_variables
from avs_jax.spec import InputError
from avs_jax.task import stack_rows
from avs_jax.tasks import make_task
from configs import ground_generated, qvh_qd_detr, tvsum_avigate
from scripts import extract_features

TINY = "--config=configs/ground_generated.py:tiny"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Generated videos, their features and their records."""
    path = tmp_path_factory.mktemp("ground_video") / "clips"
    write_clips(path, 2, 2, 2, size=32, workers=1, setting="moments")
    assert extract_features.main(["extract_features", TINY, f"--folder={path}"]) == 0
    data = ["--dataset=own_moments", f"--manual_dir={path}", f"--data_dir={path}/tfds"]
    assert build_dataset.main(data) == 0
    return path


def make_config(folder):
    config = ground_generated.get_config("tiny")
    config.data.data_dir = f"{folder}/tfds"
    return config


def save_random(config, directory):
    """A checkpoint with random weights."""
    task = make_task(config)
    example = task.inputs(stack_rows([task.rows.empty(train=False)], task.rows.fields))
    shapes = jax.eval_shape(lambda: init_variables(task.model, example, 0))
    rng = np.random.default_rng(0)
    params, batch_stats = jax.tree.map(
        lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), shapes
    )
    save_variables(directory, {"params": params, "batch_stats": batch_stats}, config)
    return directory


@pytest.fixture(scope="module")
def checkpoint(folder):
    return save_random(make_config(folder), folder.parent / "weights")


def test_records_hold_what_prediction_would_make(folder):
    config = make_config(folder)
    records = open_records(config, "train")
    stored = records.metadata["features"]
    assert stored == config.data.features.to_dict() | {"clip_seconds": 2.0}
    row = make_task(config).rows.prepare(records[0])
    num_clips = int(float(records[0]["duration"]) / 2)
    assert row["video_mask"].sum() == num_clips and row["audio"].any() and row["energy"].any()
    assert row["domain"] in ("sound", "look", "both")


def test_features_that_exist_are_kept_and_others_refused(folder, capsys):
    times = {p: p.stat().st_mtime_ns for p in (folder / "features" / "video").iterdir()}
    flags = ["extract_features", TINY, f"--folder={folder}"]
    assert extract_features.main(flags) == 0
    assert times == {p: p.stat().st_mtime_ns for p in times}
    assert extract_features.main([*flags, "--config.data.features.sound="]) == 1
    assert "holds features with sound = 'mel'" in capsys.readouterr().err
    assert extract_features.main([*flags, "--config.data.clip_seconds=1.0"]) == 1
    assert "holds features with clip_seconds = 2.0" in capsys.readouterr().err


def test_energy_alone_does_not_stand_for_a_video(folder, tmp_path):
    """derive_moments.py writes the energy of a clip before anything else is made."""
    (tmp_path / "videos").mkdir()
    path = next((folder / "videos").glob("test*.mp4"))
    shutil.copy(path, tmp_path / "videos")
    (tmp_path / "features/energy").mkdir(parents=True)
    np.save(tmp_path / f"features/energy/{path.stem}.npy", np.zeros((1, 1), np.float32))
    assert extract_features.main(["extract_features", TINY, f"--folder={tmp_path}"]) == 0
    for kind in ("video", "audio", "energy"):
        made, expected = (
            np.load(root / "features" / kind / f"{path.stem}.npy") for root in (tmp_path, folder)
        )
        np.testing.assert_array_equal(made, expected)


def test_queries_that_features_would_not_fit_are_listed(tmp_path, capsys):
    (tmp_path / "videos").mkdir()
    line = {"qid": 1, "vid": "v", "query": "a dog", "duration": 4, "clip_seconds": 2}
    other = line | {"query": "a cat"}
    fast = line | {"qid": 2, "clip_seconds": 1}
    (tmp_path / "moments_train.jsonl").write_text(json.dumps(line))
    (tmp_path / "moments_val.jsonl").write_text(json.dumps(other) + "\n" + json.dumps(fast))
    assert extract_features.main(["extract_features", TINY, f"--folder={tmp_path}"]) == 1
    err = capsys.readouterr().err
    assert "2 unusable queries" in err and "qid 1 is 'a dog' in another split" in err
    assert "qid 2: its clips are 1 s, but config.data.clip_seconds is 2" in err


def test_unusable_videos_are_listed(tmp_path, capsys):
    (tmp_path / "videos").mkdir()
    for name in ("a.mp4", "b.mov"):
        (tmp_path / "videos" / name).write_bytes(b"no video")
    assert extract_features.main(["extract_features", TINY, f"--folder={tmp_path}"]) == 1
    err = capsys.readouterr().err
    assert "2 of 2 videos are unusable" in err and "a.mp4" in err and "b.mov" in err
    (tmp_path / "videos" / "b.mov").rename(tmp_path / "videos" / "a.mov")
    assert extract_features.main(["extract_features", TINY, f"--folder={tmp_path}"]) == 1
    assert "a.mov: another video is called a, too" in capsys.readouterr().err


def test_a_video_and_its_texts(folder, checkpoint, tmp_path, capsys):
    path = next((folder / "videos").glob("test*.mp4"))
    flags = [f"--checkpoint={checkpoint}", f"--video={path}", f"--output={tmp_path}/out"]
    long = "the violin that is heard after a low siren"  # of 9 words, 4 are read
    texts = [f"--text={text}" for text in ("the violin", "a low siren", long)]
    assert predict.main(["predict", *flags, *texts]) == 0
    out = capsys.readouterr().out
    assert "the violin: " in out and "a low siren: " in out and out.count("(cut: ") == 1
    assert "(cut: the last 5 word pieces were not read, config.data.max_words = 4)" in out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    seconds = results["duration_seconds"]
    assert [query["text"] for query in results["queries"]] == ["the violin", "a low siren", long]
    assert [query["cut_word_pieces"] for query in results["queries"]] == [0, 0, 5]
    for query in results["queries"]:
        windows = np.array(query["windows"])
        assert len(query["saliency"]) == -(-seconds // 2)
        assert windows[:, :2].min() >= 0 and windows[:, :2].max() <= seconds
        assert (np.diff(windows[:, 2]) <= 0).all()
        start, end, _ = query["windows"][0]
        cut = video.probe(tmp_path / "out" / query["cut"])
        assert cut.duration == pytest.approx(max(end - start, 2), abs=0.3)
    with Image.open(tmp_path / "out" / "chart.png") as chart:
        assert chart.size[0] > 500


def test_mistakes_are_named(folder, checkpoint, tmp_path, capsys):
    path = next((folder / "videos").glob("test*.mp4"))
    flags = ["predict", f"--checkpoint={checkpoint}", f"--video={path}", f"--output={tmp_path}/out"]
    assert predict.main(flags) == 1
    assert "--text is missing" in capsys.readouterr().err
    assert predict.main([*flags, "--text=?"]) == 1
    assert "the text '?' has no word" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_records_of_other_features_are_refused(folder):
    config = make_config(folder)
    config.data.features.frames = "backbone"
    with pytest.raises(InputError, match="frames = 'backbone', but the records of own_moments"):
        make_task(config).controls(open_records(config, "val"), "val")


def test_a_model_that_reads_sound_needs_it():
    config = ground_generated.get_config("tiny")
    config.model.fusion = {"name": "concat"}
    with pytest.raises(InputError, match="audio is missing: the fusion 'concat'"):
        make_task(config).array_inputs({"video": np.zeros((1, 3, 82), np.float32)})
    assert make_task(qvh_qd_detr.get_config("tiny")).array_inputs({}) == ({}, [])


def test_every_clip_needs_a_position():
    config = tvsum_avigate.get_config("tiny")
    make_task(config)
    config.data.max_clips = config.model.fusion.max_length + 1
    with pytest.raises(InputError, match="max_length = 1000: expected at least .* = 1001"):
        make_task(config)


@pytest.mark.slow
def test_training_on_videos_reports_domains(folder, tmp_path):
    flags = [TINY, f"--config.data.data_dir={folder}/tfds", f"--workdir={tmp_path}/run"]
    program.main(["main", *flags, "--config.train.final_splits=('test',)"])
    (path,) = (tmp_path / "run" / "evaluation").glob("*/report.json")
    scores = json.loads(path.read_text())["scores"]
    assert set(scores) == {"true_audio", "another_query", "another_sound", "silence"}
    domains = [name for name in scores["true_audio"] if name.startswith("moments(domain")]
    assert domains == [f"moments(domain {name})" for name in ("both", "look", "sound")]
    assert list(path.parent.glob("pictures/*.png"))
