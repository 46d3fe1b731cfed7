"""Command lines: overrides, unknown keys and files, and errors of one line."""

import os
import subprocess
import sys

import numpy as np
import pytest
from absl import flags

from avs_jax.runtime.checkpoint import Checkpoint, save_variables
from avs_jax.runtime.command_line import UsageError, checkpoint_config, parse
from tests.conftest import ROOT


def define(values):
    flags.DEFINE_string("output", None, "where", flag_values=values)


def run(*args):
    return parse(["program", *args], define, "What it does.", required=["output"])


CONFIG = ("--config=configs/s4_vct.py:demo", "--output=x")
OLD_NAME = ("--config.model.fusion.name=ama", "--config.model.fusion.lambda_init=2.0")


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_overrides_follow_types_and_references():
    args = ("--config.model.backbone.depths=(2,4)", "--config.data.num_classes=5")
    config, values, _ = run(*CONFIG, *args, "--config.optim.learning_rate=1e-3")
    assert config.model.backbone.depths == (2, 4)
    assert config.model.num_classes == 5 and config.optim.learning_rate == 1e-3
    assert values.output == "x" and config.is_locked
    assert run(*CONFIG)[0].model.num_classes == 2  # nothing stays behind in the process


def test_overrides_may_come_first():
    config, *_ = run("--config.train.steps=7", "-config.optim.clip_norm=3.0", *CONFIG)
    assert config.train.steps == 7 and config.optim.clip_norm == 3.0


@pytest.mark.parametrize(
    "args, reason",
    [
        ((*CONFIG, "--config.model.num_querys=3"), "model.num_querys: no such key.*num_queries"),
        ((*CONFIG, "--config.modle.num_queries=3"), "no such key; nearest: model.num_queries"),
        ((*CONFIG, "-config.train.stepps=3"), "train.stepps: no such key; nearest: train.steps"),
        ((*CONFIG, "--config.train.steps=many"), "train.steps=many.*invalid literal"),
        ((*CONFIG, "--outptu=y"), "Unknown command line flag 'outptu'"),
        ((*CONFIG, "stray"), "'stray' after --output=x: not a flag"),
        (
            ("--config=configs/s4_vct.py:small", "--output=x"),
            "variant 'small': choose nothing",
        ),
        (("--config=configs/s4_vtc.py", "--output=x"), "not a file; nearest: configs/s4_vct.py"),
        (("--config=s4_vtc:demo", "--output=x"), "s4_vtc is not a file; nearest: s4_vct"),
        (("--config=nowhere/s4_vtc.py", "--output=x"), "nearest: configs/s4_vct.py"),
        (("--output=x",), "--config is missing"),
        (CONFIG[:1], "--output is missing"),
    ],
)
def test_mistakes_get_one_line(args, reason):
    with pytest.raises(UsageError, match=reason) as caught:
        run(*args)
    assert len(str(caught.value).splitlines()) == 1


def test_keys_of_a_part_exist_only_if_it_is_chosen(capsys):
    """Also under a former name, and if the command line chooses the part."""
    config, *_ = run(*CONFIG, "--config.model.fusion.lambda_init=0.0")
    assert config.model.decoder.lambda_init == 0
    config, *_ = run(*CONFIG, "--config.model.fusion.grid=8")
    assert config.model.fusion.to_dict() == {"name": "none"}
    assert "model.fusion.grid=8 is not read" in capsys.readouterr().err
    config, *_ = run(*CONFIG, "--config.model.fusion.grid=8", "--config.model.fusion.name=ama")
    assert config.model.fusion.to_dict() == {"name": "ama", "grid": 8}


def test_configs_are_ours_wherever_the_program_runs(tmp_path):
    """A package of that name in the working directory does not shadow it."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "segment.py").write_text("raise SystemExit('another package')")
    script = (
        "from avs_jax.runtime.command_line import parse\n"
        "line = parse(['x', '--config=configs/s4_ama.py:tiny'], lambda values: None, '')\n"
        "print(line.config.name)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert ended.stdout.strip() == "s4_ama_tiny", ended.stderr


def test_recipes_have_names_and_flags_have_hyphens(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, values, _ = run("--config=s4_vct:tiny", "--output=some-file_name")
    assert config.name == "s4_vct_tiny" and values.output == "some-file_name"
    config, *_ = run(*CONFIG, "--config.train.batch-size=3")
    assert config.train.batch_size == 3


def test_keys_that_change_a_number_are_the_checkpoints_unless_typed(tmp_path):
    recipe = "--config=configs/refer_cma.py:tiny"
    changed = ("evaluate.score_size=48", "evaluate.fallback=zeros", "data.num_frames=7")
    stored, *_ = run(recipe, "--output=x", *(f"--config.{key}" for key in changed))
    save_variables(tmp_path / "run", {"params": {"a": np.zeros(1)}}, stored)
    checkpoint = Checkpoint.find(tmp_path / "run")

    def resolve(*args):
        return checkpoint_config(run(recipe, "--output=x", *args), checkpoint)

    config, notes = resolve("--config.evaluate.split=test_n", "--config.evaluate.batch_size=3")
    assert (config.evaluate.score_size, config.evaluate.fallback) == (48, "zeros")
    assert config.data.num_frames == 7
    assert (config.evaluate.split, config.evaluate.batch_size) == ("test_n", 3)
    assert sorted(notes) == [
        "config.data.num_frames = 7 as in the checkpoint, not 10",
        "config.evaluate.fallback = 'zeros' as in the checkpoint, not 'none'",
        "config.evaluate.score_size = 48 as in the checkpoint, not 32",
    ]
    config, notes = resolve("--config.evaluate.score_size=32", "--config.data.num_frames=7")
    assert (config.evaluate.score_size, config.evaluate.fallback) == (32, "zeros")
    assert notes == [
        "config.evaluate.fallback = 'zeros' as in the checkpoint, not 'none'",
        "config.evaluate.score_size = 32 by the command line, trained 48",
    ]
    assert "model.decoder.lambda_init" in run(*CONFIG, *OLD_NAME).overridden


def test_help(capsys):
    with pytest.raises(SystemExit) as caught:
        run("--help")
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert "What it does." in printed and "--output" in printed and "--config" in printed
