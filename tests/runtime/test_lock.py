"""The lock of a directory, with real processes: who wins, what a kill leaves, who may take over."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from avs_jax.runtime import lock
from avs_jax.runtime.lock import locked
from avs_jax.spec import InputError
from tests.conftest import ROOT

# For each line "DIRECTORY MOMENT": takes the lock at that moment, and holds it until the next line.
HOLDER = """
import sys, time
from avs_jax.runtime.lock import locked
from avs_jax.spec import InputError
print("ready", flush=True)
for line in iter(sys.stdin.readline, ""):
    directory, moment = line.split()
    time.sleep(max(0, float(moment) - time.time()))
    try:
        with locked(directory, "training"):
            print("locked", flush=True)
            sys.stdin.readline()
        print("released", flush=True)
    except InputError as error:
        print(f"error: {error}", flush=True)
        sys.stdin.readline()
        print("released", flush=True)
"""


class Holder:
    """A process that holds locks."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.read() == "ready\n"

    def read(self):
        return self.process.stdout.readline()

    def write(self, line):
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def release(self):
        self.write("")
        assert self.read() == "released\n"

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture(scope="module")
def holders():
    started = [Holder(), Holder()]
    yield started
    for holder in started:
        holder.kill()


def states(folder: pathlib.Path) -> dict[str, tuple[int, ...]]:
    """Of every file, what a write changes and reading does not."""
    stats = {path.name: path.stat() for path in folder.iterdir()}
    return {name: (s.st_ino, s.st_size, s.st_mtime_ns) for name, s in stats.items()}


def test_a_second_start_is_refused_and_changes_nothing(tmp_path, holders):
    holders[0].write(f"{tmp_path} 0")
    assert holders[0].read() == "locked\n"
    (tmp_path / "file").write_text("x")
    before = states(tmp_path)
    with pytest.raises(InputError) as error, locked(tmp_path, "evaluation"):
        pass
    text = str(error.value)
    assert text.startswith(
        f"{tmp_path} is in use by training, process {holders[0].process.pid} on "
    )
    assert ", started 20" in text and text.endswith("wait for it, stop it, or use another folder")
    assert states(tmp_path) == before
    holders[0].release()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("leftover", [False, True])
def test_of_two_simultaneous_starts_one_wins(tmp_path, holders, leftover):
    """Twenty times, also where both find the lock of a process that is gone."""
    for i in range(20):
        folder = tmp_path / str(i)
        folder.mkdir()
        if leftover:
            write_lock(folder, process_start="1")
        moment = time.time() + 0.02
        for holder in holders:
            holder.write(f"{folder} {moment}")
        said = sorted(holder.read() for holder in holders)
        assert said[0].startswith(f"error: {folder} is in use by training, process ")
        assert said[1] == "locked\n"
        assert [p.name for p in folder.iterdir()] == [".lock"]
        for holder in holders:
            holder.release()
        assert not list(folder.iterdir())


def test_after_kill_9_the_next_start_recovers(tmp_path, capsys):
    holder = Holder()
    holder.write(f"{tmp_path} 0")
    assert holder.read() == "locked\n"
    holder.kill()
    assert (tmp_path / ".lock").exists()
    with locked(tmp_path, "training"):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert f"recovered; training, process {holder.process.pid} on" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def write_lock(directory, **changes):
    owner = lock._describe_me("training", None) | changes
    (directory / ".lock").write_text(json.dumps(owner))


def test_a_reused_pid_is_another_process(tmp_path):
    write_lock(tmp_path)
    with pytest.raises(InputError, match=f"process {os.getpid()} on"), locked(tmp_path, "x"):
        pass
    write_lock(tmp_path, process_start="1")
    with locked(tmp_path, "x"):
        pass


def test_a_lock_from_elsewhere_is_recovered_when_its_touches_stop(tmp_path):
    write_lock(tmp_path, host="far", machine="another boot", pid=1)
    with pytest.raises(InputError, match="on far, .*gone, start again 300 s after .*, 0 s ago"):
        with locked(tmp_path, "x"):
            pass
    past = time.time() - lock.STALE_SECONDS - 5
    os.utime(tmp_path / ".lock", (past, past))
    with locked(tmp_path, "x"):
        assert json.loads((tmp_path / ".lock").read_text())["host"] != "far"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_a_lock_that_cannot_be_read_counts_until_it_is_old(tmp_path, content):
    (tmp_path / ".lock").write_text(content)
    with pytest.raises(InputError, match="in use by a process that has not written its name"):
        with locked(tmp_path, "x"):
            pass
    os.utime(tmp_path / ".lock", (1, 1))
    with locked(tmp_path, "x"):
        pass


def test_a_recovery_that_was_killed_does_not_block_the_next(tmp_path, monkeypatch):
    write_lock(tmp_path, process_start="1")
    (tmp_path / ".lock").rename(tmp_path / ".lock.recovery")
    write_lock(tmp_path, process_start="1")
    with locked(tmp_path, "x"):
        pass
    write_lock(tmp_path)
    (tmp_path / ".lock").rename(tmp_path / ".lock.recovery")  # of a process that is there
    write_lock(tmp_path, process_start="1")
    monkeypatch.setattr(lock, "RECOVERY_SECONDS", 0.2)
    with pytest.raises(InputError, match="another start is recovering this lock"):
        with locked(tmp_path, "x"):
            pass


def test_within_one_process_it_is_taken_once(tmp_path):
    """Training evaluates under its own lock."""
    with locked(tmp_path / "new", "training"):
        with locked(tmp_path / "new", "evaluation"):
            pass
        assert json.loads((tmp_path / "new" / ".lock").read_text())["job"] == "training"
    assert not list((tmp_path / "new").iterdir())
    with pytest.raises(KeyError), locked(tmp_path, "training", coordinator="host:1"):
        assert json.loads((tmp_path / ".lock").read_text())["coordinator"] == "host:1"
        raise KeyError
    assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize("is_in_background", [False, True])
def test_the_owner_touches_it_and_notices_who_took_over(
    tmp_path, monkeypatch, capsys, is_in_background
):
    """SIGINT stops it, or SIGTERM where a shell made the process ignore SIGINT."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    if is_in_background:
        handlers = {
            signal.SIGINT: signal.SIG_IGN,
            signal.SIGTERM: lambda *_: signal.default_int_handler(signal.SIGTERM, None),
        }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        _lose_the_lock(tmp_path, monkeypatch, capsys)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _lose_the_lock(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.05)
    path = tmp_path / ".lock"
    with pytest.raises(KeyboardInterrupt), locked(tmp_path, "training"):
        os.utime(path, (1, 1))
        wait_until(lambda: path.stat().st_mtime > time.time() - 100)
        write_lock(tmp_path, host="far", token="another")
        time.sleep(10)
    assert "has been taken over by training" in capsys.readouterr().err
    assert json.loads(path.read_text())["host"] == "far"  # not ours to remove


def wait_until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_directory_that_cannot_be_written_is_an_os_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError), locked(pathlib.Path(tmp_path / "file"), "x"):
        pass
