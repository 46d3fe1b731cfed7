"""Flags have underscores; hyphens mean the same, also in what the shell gave the program."""

import sys

from avs_jax.flag_style import FlagParser


def test_hyphens_and_underscores_are_the_same(monkeypatch):
    parser = FlagParser()
    parser.add_argument("--data_dir")
    assert parser.parse_args(["--data-dir=a-b"]).data_dir == "a-b"
    monkeypatch.setattr(sys, "argv", ["program", "--data-dir=c_d", "--data_dir=a-b"])
    assert parser.parse_args().data_dir == "a-b"
