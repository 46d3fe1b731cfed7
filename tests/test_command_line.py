"""Command lines: overrides, unknown keys and files, and errors of one line."""

import pytest
from absl import flags

from avs_jax.runtime.command_line import UsageError, parse


def define(values):
    flags.DEFINE_string("output", None, "where", flag_values=values)


def run(*args):
    return parse(["program", *args], define, "What it does.", required=["output"])


CONFIG = ("--config=configs/s4_vct.py:demo", "--output=x")


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch):
    from avs_jax.runtime.command_line import ROOT

    monkeypatch.chdir(ROOT)


def test_overrides_follow_types_and_references():
    args = ("--config.model.backbone.depths=(2,4)", "--config.data.num_classes=5")
    config, values = run(*CONFIG, *args, "--config.optim.learning_rate=1e-3")
    assert config.model.backbone.depths == (2, 4)
    assert config.model.num_classes == 5 and config.optim.learning_rate == 1e-3
    assert values.output == "x" and config.is_locked
    assert run(*CONFIG)[0].model.num_classes == 2  # nothing stays behind in the process


def test_overrides_may_come_first():
    config, _ = run("--config.train.steps=7", "-config.optim.clip_norm=3.0", *CONFIG)
    assert config.train.steps == 7 and config.optim.clip_norm == 3.0


@pytest.mark.parametrize(
    "args, reason",
    [
        ((*CONFIG, "--config.model.num_querys=3"), "model.num_querys: no such key.*num_queries"),
        ((*CONFIG, "--config.modle.num_queries=3"), "no such key; nearest: model.num_queries"),
        ((*CONFIG, "-config.train.stepps=3"), "train.stepps: no such key; nearest: train.steps"),
        ((*CONFIG, "--config.train.steps=many"), "train.steps=many.*invalid literal"),
        ((*CONFIG, "--outptu=y"), "Unknown command line flag 'outptu'"),
        ((*CONFIG, "stray"), "'stray': not a flag"),
        (("--config=configs/s4_vct.py:small", "--output=x"), "no such variant; choose"),
        (("--config=configs/s4_vtc.py", "--output=x"), "not a file; nearest: configs/s4_vct.py"),
        (("--output=x",), "--config is missing"),
        (CONFIG[:1], "--output is missing"),
    ],
)
def test_mistakes_get_one_line(args, reason):
    with pytest.raises(UsageError, match=reason) as caught:
        run(*args)
    assert len(str(caught.value).splitlines()) == 1


def test_help(capsys):
    with pytest.raises(SystemExit) as caught:
        run("--help")
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert "What it does." in printed and "--output" in printed and "--config" in printed
