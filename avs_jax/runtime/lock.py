"""One job per directory: a lock file that outlives neither its process nor its host.

  DIRECTORY/.lock   JSON: host, machine (boot and process namespace), pid, process_start, started,
                    job, coordinator, token

The file is created with O_EXCL, which is atomic on network file systems too, where flock often is
not. Its owner touches it every 30 seconds. A lock whose owner is gone is recovered: on the same
machine as soon as no process has its pid and start time, so that a reused pid does not count; from
elsewhere after five minutes without a touch. Recovery is serialized by a second such file, so two
starts cannot both take over.
"""

import contextlib
import datetime
import json
import os
import pathlib
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from avs_jax.spec import InputError

NAME = ".lock"
RECOVERY = ".recovery"
HEARTBEAT_SECONDS = 30
STALE_SECONDS = 300  # without a touch, for owners elsewhere
RECOVERY_SECONDS = 10  # that a start waits for another one to recover the same lock
WRITE_SECONDS = 1  # that a new lock may take to get its content

_held: set[pathlib.Path] = set()  # by this process


@contextlib.contextmanager
def locked(
    directory: str | os.PathLike, job: str, coordinator: str | None = None, name: str = NAME
) -> Iterator[None]:
    """Holds the lock of a directory, which is created if missing.

    Of the processes of one job, process 0 takes the lock before any of them enters the block, and
    releases it after all have left. A block within a block of the same process and directory takes
    nothing.

    Args:
      directory: what the job writes to.
      job: what runs, such as "training"; shown to a process that is refused.
      coordinator: address that the processes of one job share, if there are several.
      name: of the lock file; jobs that write to different entries of a directory name theirs.

    Raises:
      InputError: another process holds the lock; names it and says what to do. Nothing in the
        directory has changed.
    """
    directory = pathlib.Path(directory).expanduser().resolve()
    path = directory / name
    if path in _held:
        yield
        return
    num_processes = jax.process_count() if jax.distributed.is_initialized() else 1
    with contextlib.ExitStack() as stack:
        if num_processes == 1:
            stack.enter_context(_holding(path, job, coordinator))
        else:
            _agree(lambda: stack.enter_context(_holding(path, job, coordinator)))
        yield
        if num_processes > 1:
            multihost_utils.sync_global_devices("done under the lock")


@contextlib.contextmanager
def _holding(path: pathlib.Path, job: str, coordinator: str | None) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    me, stop = _describe_me(job, coordinator), threading.Event()
    _take(path, me)
    _held.add(path)
    beat = threading.Thread(target=_beat, args=(path, me["token"], stop), daemon=True)
    beat.start()
    try:
        yield
    finally:
        stop.set()
        _release(path, me["token"])


def _agree(take: Callable[[], Any]) -> None:
    """Calls `take` in process 0; raises in all processes if it does."""
    error = None
    if jax.process_index() == 0:
        try:
            take()
        except (InputError, OSError) as raised:
            error = raised
    if not multihost_utils.broadcast_one_to_all(np.array(error is None)):
        raise error or InputError("process 0 of this job cannot lock the folder; it says why")


def _take(path: pathlib.Path, me: dict[str, Any]) -> None:
    deadline = time.monotonic() + RECOVERY_SECONDS
    while not _create(path, me):
        owner = _read(path)
        if owner is None:  # released in the meantime
            continue
        if not _is_stale(owner, path):
            raise InputError(_refusal(path, owner))
        recovery = path.with_name(f"{path.name}{RECOVERY}")
        if _create(recovery, me):
            try:
                # The owner may have changed before this start came to recover.
                if _read(path) == owner:
                    path.unlink()
                    print(f"{path}: recovered; {_name(owner)} is gone", file=sys.stderr)
            finally:
                recovery.unlink()
            continue
        other = _read(recovery)
        if other is not None and _is_stale(other, recovery):
            recovery.unlink(missing_ok=True)
        elif time.monotonic() > deadline:
            raise InputError(f"{recovery}: another start is recovering this lock; try again")
        else:
            time.sleep(0.05)


def _create(path: pathlib.Path, content: dict[str, Any]) -> bool:
    """Creates a file that does not exist; whether it did not."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    try:
        os.write(descriptor, json.dumps(content, indent=1).encode())
    except OSError:
        path.unlink()
        raise
    finally:
        os.close(descriptor)
    return True


def _read(path: pathlib.Path) -> dict[str, Any] | None:
    """Content of a lock, None if there is no lock, {} if its owner was killed as it wrote it."""
    deadline = time.monotonic() + WRITE_SECONDS
    while True:
        with contextlib.suppress(ValueError):
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
            except FileNotFoundError:
                return None
            if isinstance(content, dict):
                return content
        if time.monotonic() > deadline:
            return {}
        time.sleep(0.02)


def _is_stale(owner: dict[str, Any], path: pathlib.Path) -> bool:
    machine = _machine()
    if machine and owner.get("machine") == machine:
        start = _process_start(owner.get("pid"))
        return start is None or start != owner.get("process_start")
    return _age(path) > STALE_SECONDS


def _age(path: pathlib.Path) -> float:
    """Seconds since the last touch, by the clock of the file system, which may be another host."""
    probe = path.with_name(f"{NAME}.{secrets.token_hex(4)}")
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
    finally:
        probe.unlink(missing_ok=True)


def _describe_me(job: str, coordinator: str | None) -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": os.getpid(),
        "process_start": _process_start(os.getpid()),
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "job": job,
        "coordinator": coordinator,
        "token": secrets.token_hex(8),
    }


def _machine() -> str:
    """Within what a pid means one process: this boot and its process namespace; "" if unknown."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _process_start(pid: Any) -> str | None:
    """When a process started, in ticks since the boot; None if it has ended."""
    try:
        # The name of the program, in parentheses, may hold spaces and parentheses.
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    state, start = fields[0], fields[19]
    return None if state in "ZX" else start


def _name(owner: dict[str, Any]) -> str:
    if not owner:
        return "a process that has not written its name"
    job = owner.get("job", "a job")
    if owner.get("coordinator"):
        job += f" (coordinator {owner['coordinator']})"
    return (
        f"{job}, process {owner.get('pid')} on {owner.get('host')}, started {owner.get('started')}"
    )


def _refusal(path: pathlib.Path, owner: dict[str, Any]) -> str:
    text = f"{path.parent} is in use by {_name(owner)}: wait for it, stop it, or use another folder"
    if owner.get("machine") != _machine():
        text += (
            f"; if that host is gone, start again {STALE_SECONDS} s after its last sign of life, "
            f"{_age(path):.0f} s ago"
        )
    return text


def _beat(path: pathlib.Path, token: str, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        try:
            owner = _read(path)
            if owner is not None and owner.get("token") == token:
                os.utime(path)
                continue
        except OSError:  # a file system that does not answer now
            continue
        if owner:
            print(f"error: {path} has been taken over by {_name(owner)}; stopping", file=sys.stderr)
            # A job that a shell started in the background may ignore SIGINT.
            is_ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGTERM if is_ignored else signal.SIGINT)
            return


def _release(path: pathlib.Path, token: str) -> None:
    _held.discard(path)
    with contextlib.suppress(OSError):
        owner = _read(path)
        if owner is not None and owner.get("token") == token:
            path.unlink()
