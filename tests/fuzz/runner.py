"""Mutates good input and reads each mutation in a process with limits on memory and time.

  run_mutations("wav", good_bytes, "tests.fuzz.audio.read", count=300, seed=1)

A mutation may be read, or refused with an InputError of one line. Anything else is a failure that
is attributed to it: another exception, a crash, memory or time beyond the limits. The input is the
content of a file, or a folder as {relative path: content}; the reader gets the path. Mutations
follow from the seed and their number, so `mutated(good, seed, number, tokens)` makes one again.
"""

import dataclasses
import importlib
import json
import os
import pathlib
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence

from avs_jax.spec import InputError

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
WALL_FACTOR = 20  # a blocked process gets so many times the processor's seconds
Input = bytes | Mapping[str, bytes]


@dataclasses.dataclass(frozen=True)
class Job:
    """What a worker process does.

    Attributes:
      good: the input that is mutated.
      reader: dotted name of a function that is given a path.
      name: of the file or folder that is read.
      seed: of the mutations.
      tokens: pieces that are inserted as they are, such as keywords of the format.
      memory: bytes beyond what the worker takes before it reads.
      seconds: of the processor, per mutation.
    """

    good: Input
    reader: str
    name: str
    seed: int
    tokens: Sequence[bytes]
    memory: int
    seconds: float


def run_mutations(
    kind: str,
    good: Input,
    reader: str,
    count: int,
    seed: int,
    *,
    name: str = "input",
    tokens: Sequence[bytes] = (),
    memory: int = 1 << 30,
    seconds: float = 10,
    batch: int = 250,
) -> dict[str, int]:
    """Reads `count` mutations of `good`, at most `batch` per process; see `Job` for the others.

    Returns:
      number of mutations that were "read" and "refused".

    Raises:
      AssertionError: the good input is not read, or listing the mutations that failed.
    """
    job = Job(good, reader, name, seed, tuple(tokens), memory, seconds)
    counts, failures, number = {"read": 0, "refused": 0}, [], -1  # -1: the good input itself
    while number < count:
        answers, death = _run_worker(job, number, min(number + batch, count))
        for outcome, text in answers:
            if outcome in counts and (number >= 0 or outcome == "read"):
                counts[outcome] += number >= 0
            else:
                failures.append(f"mutation {number}: {text}")
            number += 1
        if death:
            failures.append(f"mutation {number}: {death}")
            number += 1
    assert not failures, (
        f"{kind}, seed {seed}: {len(failures)} of {count} mutations failed (-1 is the good input), "
        "the first:\n" + "\n".join(failures[:5])
    )
    return counts


def mutated(good: Input, seed: int, number: int, tokens: Sequence[bytes] = ()) -> Input:
    """The mutation of that number; -1: the good input."""
    if number < 0:
        return good
    rng = random.Random(f"{seed}/{number}")
    if isinstance(good, bytes):
        return _mutate(good, tokens, rng)
    files = dict(good)
    name = rng.choice(sorted(files))
    match rng.randrange(12):
        case 0:
            del files[name]
        case 1:
            files[name] = b""
        case 2:
            files[name] = files[rng.choice(sorted(files))]
        case _:
            files[name] = _mutate(files[name], tokens, rng)
    return files


def _mutate(data: bytes, tokens: Sequence[bytes], rng: random.Random) -> bytes:
    """One to four edits."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        data = _edit(data, tokens, rng)
    return data


def _edit(data: bytes, tokens: Sequence[bytes], rng: random.Random) -> bytes:
    start = rng.randrange(len(data) + 1)
    end = min(start + rng.choice((1, 1, 2, 4, 8, 30, 1000)), len(data))
    digits = [i for i, byte in enumerate(data[:100_000]) if chr(byte).isdigit()]
    kind = rng.randrange(10 if tokens else 9)
    if kind == 0 and data:  # a bit
        start = rng.randrange(len(data))
        return data[:start] + bytes([data[start] ^ 1 << rng.randrange(8)]) + data[start + 1 :]
    if kind == 1:  # random bytes
        return data[:start] + rng.randbytes(end - start) + data[end:]
    if kind == 2:  # an extreme number in the place of another
        width = rng.choice((1, 2, 4, 8))
        value = rng.choice((0, 1, -1, 2 ** (8 * width - 1) - 1, 2 ** (8 * width - 1), 1000))
        order = rng.choice(("little", "big"))
        number = (value % 2 ** (8 * width)).to_bytes(width, order)
        return data[:start] + number + data[start + width :]
    if kind == 3 and digits:  # a number in text
        start = rng.choice(digits)
        value = rng.choice((b"0", b"-1", b"65536", b"2147483648", b"1" + b"0" * 30, b"1.5", b"NaN"))
        return data[:start] + value + data[start + 1 :]
    if kind == 4:  # cut out
        return data[:start] + data[end:]
    if kind == 5:  # cut off
        return data[:start]
    if kind == 6:  # repeat
        return data[:end] + data[start:end] * rng.choice((1, 2, 100)) + data[end:]
    if kind == 7:  # copy elsewhere
        there = rng.randrange(len(data) + 1)
        return data[:there] + data[start:end] + data[there + end - start :]
    if kind == 9:  # pieces of the format
        pieces = b"".join(rng.choice(tokens) for _ in range(rng.choice((1, 1, 2, 5))))
        return data[:start] + pieces + data[rng.choice((start, end)) :]
    return data[:start] + rng.randbytes(rng.choice((1, 2, 4, 100))) + data[start:]  # insert


# ---- processes ----


def _run_worker(job: Job, first: int, last: int) -> tuple[list[list[str]], str]:
    """Outcome and text of mutations `first` to `last`, and how the worker died, if it did."""
    environment = {"JAX_PLATFORMS": "cpu", "OPENBLAS_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.runner", str(first), str(last)],
        input=pickle.dumps(job), capture_output=True, cwd=ROOT, env=os.environ | environment,
    )  # fmt: skip
    answers = [json.loads(line) for line in run.stdout.splitlines()]
    if run.returncode == 0 and len(answers) == last - first:
        return answers, ""
    reason = f"exit status {run.returncode}"
    if run.returncode < 0:
        reason = signal.Signals(-run.returncode).name
        if reason in ("SIGPROF", "SIGALRM"):
            reason = f"took more than {job.seconds} s"
    return answers, f"{reason}: {run.stderr.decode(errors='replace')[-1500:]}"


def _work(first: int, last: int) -> None:
    """The worker: reads a job from the standard input, writes a line per mutation."""
    job = pickle.loads(sys.stdin.buffer.read())
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # readers may print
    module, _, function = job.reader.rpartition(".")
    read = getattr(importlib.import_module(module), function)
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + job.memory
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with tempfile.TemporaryDirectory() as folder:
        for number in range(first, last):
            path = pathlib.Path(folder) / job.name
            _write(path, mutated(job.good, job.seed, number, job.tokens))
            # Both end the process, whatever it does; a Python handler would wait for its turn.
            signal.setitimer(signal.ITIMER_PROF, job.seconds)
            signal.setitimer(signal.ITIMER_REAL, WALL_FACTOR * job.seconds)
            print(json.dumps(_outcome(read, path)), file=answers, flush=True)
            for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
                signal.setitimer(timer, 0)


def _outcome(read, path: pathlib.Path) -> tuple[str, str]:
    try:
        read(path)
    except InputError as error:
        text = str(error)
        return ("refused", text) if len(text.splitlines()) == 1 else ("lines", text)
    except BaseException:
        return "failed", traceback.format_exc(limit=-4)[-1500:]
    return "read", ""


def _write(path: pathlib.Path, content: Input) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
        return
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    for name, data in content.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)


if __name__ == "__main__":
    _work(int(sys.argv[1]), int(sys.argv[2]))
