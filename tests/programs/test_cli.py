"""The console command: every subcommand is found, describes itself, and gets its arguments."""

import subprocess
import sys

import pytest

from avs_jax import cli


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_has_an_example_of_the_subcommand(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([*name.split(), "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    lines = [f"{line.strip()} " for line in text.splitlines()]
    assert any(line.startswith(f"avs-jax {name} ") for line in lines)
    assert "undefok" not in text


def test_the_list_names_every_subcommand(capsys):
    for arguments in ([], ["--help"], ["help"]):
        assert cli.main(arguments) == 0
        text = capsys.readouterr().out
        for name, command in cli.COMMANDS.items():
            assert f"  {name} " in text and command.text in text
    assert cli.main(["data"]) == 0
    assert "data prepare" in capsys.readouterr().out
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("avs_jax ")


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["trian"], "there is no command 'trian'; nearest: train"),
        (["data", "buidl"], "there is no command 'data buidl'; nearest: data build"),
        (["???"], "nearest: train, evaluate, "),
        (["evaluate"], "either --checkpoint or --predictions"),
        (["plan", "--devices=2"], "--config is missing"),
        (["clips", "--kind=slow", "--output=x"], "error: "),
        (["data", "check", "no-such-folder"], "error: no-such-folder"),
    ],
)
def test_mistakes_get_one_line(arguments, reason, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 1
    err = capsys.readouterr().err
    assert reason in err and "Traceback" not in err


@pytest.mark.parametrize("status, expected", [("130", 130), ("143", 143), ("0", -6), ("'x'", -6)])
def test_a_stopped_program_skips_the_cleanup_that_crashes(status, expected):
    code = (
        "import atexit, os, sys; from avs_jax.stopping import run_as_program; "
        f"atexit.register(os.abort); run_as_program(lambda: sys.exit({status}))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert found.returncode == expected


SWALLOWED = {
    "ignored": "class Ignoring:\n    def __del__(self): raise {}\nIgnoring()",
    "a_cause": "try:\n    raise {}\nexcept KeyboardInterrupt as e:\n    raise SystemError from e",
    "a_context": "try:\n    raise {}\nexcept KeyboardInterrupt:\n    raise ValueError",
}


@pytest.mark.parametrize("code", SWALLOWED.values(), ids=SWALLOWED)
@pytest.mark.parametrize(
    "interrupt, status", [("KeyboardInterrupt", 130), ("stopping.Terminated", 143)]
)
def test_an_interrupt_within_a_function_of_another_language_stops_too(code, interrupt, status):
    """As C++ answers an exception of the Python functions that it calls."""
    program = (
        "import signal, sys, time\nfrom avs_jax import stopping\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"def work():\n    exec({code.format(interrupt)!r})\n    time.sleep(20)\n"
        "stopping.run_as_program(work)\n"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    word = "interrupted" if status == 130 else "terminated"
    assert (found.returncode, found.stderr) == (status, f"{word}\n")
