"""The doctor names what is there and what is wrong."""

import pytest

from avs_jax.programs import doctor


def test_it_describes_the_installation(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "CODECS", {"r": ("h264", "no_such_codec")})
    assert doctor.main(["--skip-model"]) == 1
    text = capsys.readouterr().out
    for part in ("avs_jax", "python", "jax ", "device", "XLA_FLAGS", "ffmpeg", "CUDA"):
        assert part in text
    assert "problem: FFmpeg's libraries lack no_such_codec" in text


@pytest.mark.parametrize("change, status", [(0.0, 0), (1.0, 1), (float("nan"), 1)])
def test_wrong_numbers_are_a_problem(monkeypatch, capsys, change, status):
    computed = {name: [x + change for x in values] for name, values in doctor.EXPECTED.items()}
    monkeypatch.setattr(doctor, "probe_model", lambda: computed)
    assert doctor.main([]) == status
    assert ("computes wrong numbers" in capsys.readouterr().out) == bool(status)


@pytest.mark.slow
def test_the_small_model_has_the_stored_numbers(capsys):
    assert doctor.main([]) == 0
    assert "all is well" in capsys.readouterr().out


@pytest.mark.parametrize("error", [RuntimeError("no GPU\nin line 2"), AssertionError()])
def test_without_a_device_it_says_what_else_it_found(monkeypatch, capsys, tmp_path, error):
    def none():
        raise error

    driver = tmp_path / "version"
    driver.write_text("NVRM version: 570\n")
    monkeypatch.setattr(doctor, "DRIVER", driver)
    monkeypatch.setattr(doctor.jax, "local_devices", none)
    monkeypatch.setattr(doctor.jax, "default_backend", none)
    assert doctor.main([]) == 1
    out = capsys.readouterr().out
    reason = "no GPU" if str(error) else "AssertionError"
    assert f"problem: jax finds no device: {reason}\n" in out
    assert "there is a GPU that jax cannot use: pip install" in out
