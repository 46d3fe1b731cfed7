"""The flag that avoids a fault of XLA on CPUs is set for the versions that have the fault."""

import os

import pytest

from avs_jax import xla_flags


@pytest.mark.parametrize(
    "jaxlib, platforms, needed",
    [
        ("0.10.2", "", False),
        ("0.11.1", "cpu", False),
        ("0.11.2", "cpu", True),
        ("0.12.0.1", "", True),
        ("0.12.0", "cuda,cpu", True),
        ("0.12.0", "cuda", False),
    ],
)
def test_who_needs_the_flag(jaxlib, platforms, needed):
    assert xla_flags.needs_flag(jaxlib, platforms) == needed


def test_the_flag_is_added_once(monkeypatch):
    monkeypatch.setattr(xla_flags, "needs_flag", lambda jaxlib, platforms: True)
    monkeypatch.setenv("XLA_FLAGS", "--xla_other=1")
    assert xla_flags.avoid_faults()
    assert os.environ["XLA_FLAGS"] == f"--xla_other=1 {xla_flags.FLAG}"
    assert "is set" in xla_flags.describe()
    assert not xla_flags.avoid_faults()
    monkeypatch.setenv("XLA_FLAGS", f"{xla_flags.NAME}=none")  # the user's choice stays
    assert not xla_flags.avoid_faults()
    assert os.environ["XLA_FLAGS"] == f"{xla_flags.NAME}=none" and "NOT" in xla_flags.describe()
