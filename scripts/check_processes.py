"""Compares training and evaluation in several processes with one, on generated clips, on the CPU.

  python scripts/check_processes.py --output=DIR [--processes=2,4]

A small model trains for a few steps in one process with one device, then in jobs of several
processes, which shard parameters, optimizer and average. The script checks that

  - losses and parameters equal those of the one process, up to the order of float32 sums;
  - only process 0 logs, and metrics.jsonl has each step once;
  - if one process is killed with -9 (the last one, or process 0), the others exit within --patience
    seconds with an error that says so, and the restarted job ends bit for bit like an uninterrupted
    one;
  - SIGTERM to one process makes all of them save the same step and exit;
  - one process can resume from a job's checkpoint;
  - evaluation of a checkpoint writes the same bytes of counts on any number of processes.

The logs are OUTPUT/RUN.PROCESS.log. The exit status is 0 if every check passes. It takes about ten
minutes on two cores, mostly for compiling.
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scripts.check_resume import compare, newest_step, read_arrays  # noqa: E402

STEPS, SAVE_EVERY, KILL_AFTER = 20, 5, 6
LOSS_TOLERANCE = 5e-4  # relative; ties between equally uncertain points may break differently
MOVE_TOLERANCE = 0.02  # relative to how far the parameters move
PROCESS_SECONDS = 1200  # time limit of a run
FLAGS = (
    "--config=configs/s4_ama.py:tiny",
    f"--config.train.steps={STEPS}",
    "--config.train.batch_size=4",
    f"--config.train.eval_every={STEPS}",
    f"--config.train.checkpoint_every={SAVE_EVERY}",
    "--config.train.keep_latest=10",
    "--config.train.ema_decay=0.9",
    "--config.train.final_splits=()",
    "--config.train.compilation_cache=True",
    "--config.loss.num_points=64",
    "--config.evaluate.batch_size=4",
    "--config.evaluate.num_pictures=0",
    "--config.evaluate.swapped_audio=False",
)


class Failed(Exception):
    """A check failed."""


def main(argv: list[str] | None = None) -> int:
    """Makes clips, runs everything, returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", required=True, help="folder of everything; must not exist")
    parser.add_argument("--processes", default="2,4", help="sizes of the jobs (%(default)s)")
    parser.add_argument(
        "--patience", type=float, default=90, help="seconds until all have ended (%(default)s)"
    )
    args = parser.parse_args(argv)
    output = pathlib.Path(args.output).expanduser().resolve()
    if output.exists():
        parser.error(f"{output} exists; name another --output")
    output.mkdir(parents=True)
    make_dataset(output)
    try:
        check_all(output, [int(n) for n in args.processes.split(",")], args.patience)
    except Failed as error:
        print(f"FAILED: {error}")
        return 1
    print("PASSED")
    return 0


def check_all(output: pathlib.Path, sizes: list[int], patience: float) -> None:
    one = output / "one"
    finish(start(one, 1))
    evaluations = {1: evaluate(one, 1)}
    for count in sizes:
        name, mesh = f"job_{count}", ["--config.train.mesh.fsdp=2"]
        job, whole = output / name, output / f"{name}_whole"
        finish(start(job, count, mesh))
        check_logs(job, count)
        check_same_training(one, job)
        say(f"{count} processes: losses and parameters are those of one")
        evaluations[count] = evaluate(one, count, mesh)
        if evaluations[count] != evaluations[1]:
            raise Failed(f"the counts of {count} processes are not those of one")
        say(f"{count} processes: the same bytes of counts, of {sorted(evaluations[1])}")
        job.rename(whole)
        for victim in (count - 1, 0):
            seconds = kill(job, count, mesh, victim, patience)
            say(f"{count} processes: {victim} was killed, the others ended after {seconds:.1f} s")
        interrupt(job, count, mesh)
        move_elsewhere(whole, output / f"{name}_then_one", one)
        finish(start(job, count, mesh))
        differing = compare(whole, job, STEPS)
        if newest_step(job) != STEPS or differing:
            raise Failed(f"{job} and {whole} end differently: {differing}")
        say(f"{count} processes: stopped three times, ends like an uninterrupted run, bit for bit")


# ---- the checks ----


def check_logs(job: pathlib.Path, count: int) -> None:
    """Only process 0 logs, and each step once."""
    steps = [line["step"] for line in read_metrics(job)]
    if steps != list(range(1, STEPS + 1)):
        raise Failed(f"{job}/metrics.jsonl has the steps {steps}")
    for i in range(1, count):
        said = [line for line in log_of(job, i).read_text().splitlines() if "[Gloo]" not in line]
        if said:
            raise Failed(f"process {i} of {count} says: {said[:5]}")


def check_same_training(one: pathlib.Path, job: pathlib.Path) -> None:
    """The first SAVE_EVERY steps: losses, parameters and their average.

    Adam turns gradients that are rounding noise into whole steps, so differences are compared with
    how far the parameters move in as many further steps.
    """
    check_same_losses(one, job, range(1, SAVE_EVERY + 1))
    want, got = (read_arrays(run / "checkpoints" / str(SAVE_EVERY)) for run in (one, job))
    later = read_arrays(one / "checkpoints" / str(2 * SAVE_EVERY))
    for part in ("['params']", "['ema']"):
        names = [name for name in want if name.startswith(part)]
        distance, error = (
            np.sqrt(sum(np.square(x[name] - want[name], dtype=np.float64).sum() for name in names))
            for x in (later, got)
        )
        say(f"  {part} after step {SAVE_EVERY} differ by {error / distance:.1e} of their movement")
        if not names or not error <= MOVE_TOLERANCE * distance:
            raise Failed(f"{part} of {job} differ by {error:.3g}, they moved by {distance:.3g}")


def check_same_losses(one: pathlib.Path, other: pathlib.Path, steps: range) -> None:
    """The same loss terms at the same steps."""
    a, b = ({line["step"]: line for line in read_metrics(run)} for run in (one, other))
    for step in steps:
        for name in [name for name in a[step] if "loss" in name]:
            values = a[step][name], b[step][name]
            if not np.isclose(*values, rtol=LOSS_TOLERANCE, atol=0):
                raise Failed(f"step {step}: {name} in {one} and {other}: {values}")


def kill(job: pathlib.Path, count: int, flags: list[str], victim: int, patience: float) -> float:
    """Kills one process after some steps; returns how long the others then ran."""
    processes = start(job, count, flags)
    wait_for_step(job, processes, (newest_step(job) or 0) + KILL_AFTER)
    processes[victim].send_signal(signal.SIGKILL)
    begun = time.monotonic()
    while any(process.poll() is None for process in processes):
        if time.monotonic() - begun > patience:
            with stopping(processes):
                raise Failed(f"{patience} s after {victim} was killed, not all have ended")
        time.sleep(0.05)
    seconds = time.monotonic() - begun
    for i, process in enumerate(processes):
        said = log_of(job, i).read_text()
        if i != victim and (process.returncode == 0 or "another" not in said):
            raise Failed(f"process {i} ended with {process.returncode}; see {log_of(job, i)}")
    return seconds


def interrupt(job: pathlib.Path, count: int, flags: list[str]) -> None:
    """SIGTERM to the last process: all save the same step and exit cleanly."""
    processes = start(job, count, flags)
    before = newest_step(job) or 0
    wait_for_step(job, processes, before + 1)
    processes[-1].send_signal(signal.SIGTERM)
    finish(processes)
    said = log_of(job, 0).read_text()
    if newest_step(job) < STEPS and "asked to stop: saved step" not in said:
        raise Failed(f"{job}: SIGTERM was ignored; see {log_of(job, 0)}")
    say(f"{count} processes: after SIGTERM to one, all ended at step {newest_step(job)}")


def move_elsewhere(job: pathlib.Path, alone: pathlib.Path, one: pathlib.Path) -> None:
    """One process resumes from a job's first checkpoint with the losses of one process."""
    step = str(SAVE_EVERY)
    shutil.copytree(job / "checkpoints" / step, alone / "checkpoints" / step)
    finish(start(alone, 1))
    check_same_losses(one, alone, range(SAVE_EVERY + 1, SAVE_EVERY + 4))
    say(f"  one process resumed from step {step} of the job")


def evaluate(workdir: pathlib.Path, count: int, flags: list[str] | None = None) -> dict[str, bytes]:
    """--mode=eval of a run; returns {name of the counts: bytes} and removes the report."""
    finish(start(workdir, count, ["--mode=eval", *(flags or [])]))
    found = {
        str(path.relative_to(workdir)): path.read_bytes()
        for path in sorted((workdir / "evaluation").rglob("counts*.npz"))
    }
    shutil.rmtree(workdir / "evaluation")
    if not found:
        raise Failed(f"{workdir}: evaluation left no counts")
    return found


# ---- processes ----


def start(
    workdir: pathlib.Path,
    count: int,
    flags: list[str] | None = None,
) -> list[subprocess.Popen]:
    """Starts the processes of a job; process i writes to OUTPUT/RUN.i.log."""
    own = [*FLAGS, f"--config.data.data_dir={workdir.parent / 'tfds'}", f"--workdir={workdir}"]
    job = [f"--coordinator=localhost:{free_port()}", f"--num_processes={count}"]
    processes = []
    for i in range(count):
        command = [sys.executable, "-m", "avs_jax.main", *own, *(flags or [])]
        command += [] if count == 1 else [*job, f"--process_id={i}"]
        with log_of(workdir, i).open("wb") as log:
            processes.append(
                subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=log, stderr=log)
            )
    return processes


def environment() -> dict[str, str]:
    """One CPU device per process, without optimizations: compiling takes most of the time."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    return kept | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


def finish(processes: list[subprocess.Popen]) -> None:
    """Waits for all processes; raises Failed if one fails or takes too long."""
    with stopping(processes):
        for i, process in enumerate(processes):
            try:
                status = process.wait(PROCESS_SECONDS)
            except subprocess.TimeoutExpired:
                raise Failed(f"process {i} still runs after {PROCESS_SECONDS} s") from None
            if status:
                raise Failed(f"process {i} ended with status {status}; see its log")


def wait_for_step(job: pathlib.Path, processes: list[subprocess.Popen], step: int) -> None:
    """Waits until a job has logged a step; raises Failed if it ends before."""
    with stopping(processes) as keep:
        said = log_of(job, 0)
        while not any(int(n) >= step for n in re.findall(r"^step (\d+)/", said.read_text(), re.M)):
            if any(process.poll() is not None for process in processes):
                raise Failed(f"{job} ended before step {step}; see {log_of(job, 0)}")
            time.sleep(0.02)
        keep.pop_all()


@contextlib.contextmanager
def stopping(processes: list[subprocess.Popen]) -> Iterator[contextlib.ExitStack]:
    """Kills running processes at the end, unless the yielded stack is emptied."""
    with contextlib.ExitStack() as stack:
        for process in processes:
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield stack


def free_port() -> int:
    """An unused port."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


# ---- files ----


def make_dataset(output: pathlib.Path) -> None:
    """Generated clips as records, in OUTPUT/tfds; the number of training clips is odd."""
    clips = output / "clips"
    for arguments in (
        ["make_clips.py", f"--output={clips}", "--train=13", "--val=3", "--test=5", "--size=64"],
        [
            "build_dataset.py",
            "--dataset=avsbench_s4",
            f"--manual_dir={clips}",
            f"--data_dir={output / 'tfds'}",
        ],
    ):
        command = [sys.executable, str(ROOT / "scripts" / arguments[0]), *arguments[1:]]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        subprocess.run(command, check=True, cwd=ROOT, env=environment, capture_output=True)


def log_of(workdir: pathlib.Path, process: int) -> pathlib.Path:
    """The log of a process of a run's last start."""
    return workdir.with_name(f"{workdir.name}.{process}.log")


def read_metrics(workdir: pathlib.Path) -> list[dict[str, float]]:
    """The training steps in a run's metrics.jsonl, without an unfinished line."""
    path, lines = workdir / "metrics.jsonl", []
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(line))
    return [line for line in lines if "total_loss" in line]


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
