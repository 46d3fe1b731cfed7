"""The study of alignment: its commands parse, its towers fit, and its steps run in order."""

import shlex
import sys
import types

import pytest

from avs_jax.runtime.command_line import parse
from scripts import ablate, score_maps, study_alignment


@pytest.fixture
def calls(monkeypatch):
    """What the study runs; `calls.fails` is a part of a command that fails."""
    found = types.SimpleNamespace(commands=[], fails="nothing")

    def run(command, cwd):
        assert command[0] == sys.executable and cwd == study_alignment.ROOT
        found.commands.append(command[1:])
        return types.SimpleNamespace(returncode=int(found.fails in " ".join(command)))

    monkeypatch.setattr(study_alignment.subprocess, "run", run)
    return found


def config_of(flags):
    return parse(["x", *flags], lambda values: None, "").config


def variants_of(command):
    args, overrides = ablate._parser().parse_known_args(command[1:])
    return args, ablate.read_variants(args.variant, overrides)


def test_steps_run_in_order_with_flags_that_exist(calls, tmp_path):
    output = tmp_path / "a study"
    flags = [f"--output={output}", "--seeds=0,3", "--jobs=2", "--align.train.steps=7"]
    assert study_alignment.main([*flags, "--config.train.steps=9"]) == 0
    programs = [command[0].removeprefix("scripts/") for command in calls.commands]
    data, tables = ["make_clips.py", "build_dataset.py"] * 2, ["write_results.py"] * 3
    assert programs == [*data, "ablate.py", "score_maps.py", "ablate.py", "ablate.py", *tables]
    align, maps, runs, swapped = calls.commands[4:8]

    args, variants = variants_of(align)
    assert (args.seeds, args.jobs, args.output) == ("0,3", 2, f"{output}/align")
    aligned = config_of(variants["align"])
    assert aligned.data.data_dir == f"{output}/pairs/tfds" and aligned.train.steps == 7

    line = parse(maps, score_maps._define_flags, "")
    assert line.config.evaluate.audio == "silence" and line.config.task == "segment"
    assert line.values.checkpoint == [f"{output}/align/align-seed{n}" for n in (0, 3)]
    assert line.values.measure == ["stream/mIoU", "stream/f_beta"]

    args, variants = variants_of(runs)
    assert list(variants) == ["scratch", "sound", "frames", "both"]
    for name, flags in variants.items():
        config = config_of([flag.replace("{seed}", "3") for flag in flags])
        assert config.data.data_dir == f"{output}/masks/tfds" and config.train.steps == 9
        start = f"{output}/align/align-seed3"
        assert config.init.audio_backbone == (start if name in ("sound", "both") else "")
        assert config.init.backbone == (start if name in ("frames", "both") else "")
        for part in ("backbone", "audio_backbone"):
            assert config.model[part] == aligned.model[part]
        for key in ("audio_mean", "audio_std"):
            assert config.model[key] == aligned.model[key]
    assert swapped == [*runs, "--train=no", "--condition=swapped_audio"]
    for command in calls.commands[8:]:
        assert "--command=python scripts/study_alignment.py --seeds=0,3 --align" in " ".join(
            command
        )


def test_steps_can_be_chosen_and_stop_at_a_failure(calls, tmp_path, capsys):
    records = tmp_path / "pairs" / "tfds" / "avsbench_s4"
    records.mkdir(parents=True)
    flags = [f"--output={tmp_path}", "--clips=9,8,7"]
    assert study_alignment.main([*flags, "--steps=clips"]) == 0  # records without clips are kept
    assert [shlex.join(command[-4:]) for command in calls.commands] == [
        f"--output={tmp_path}/masks/clips --train=9 --val=8 --test=7",
        "scripts/build_dataset.py --dataset=avsbench_ms3"
        f" --manual_dir={tmp_path}/masks/clips --data_dir={tmp_path}/masks/tfds",
    ]
    calls.commands.clear()
    calls.fails = "score_maps"
    assert study_alignment.main([*flags, "--steps=runs,maps"]) == 1
    assert len(calls.commands) == 1 and "step maps stopped" in capsys.readouterr().err
    for flag in ("--steps=maps,draw", "--step=maps"):
        with pytest.raises(SystemExit):
            study_alignment.main([flag])
