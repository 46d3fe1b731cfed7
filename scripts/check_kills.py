"""Kills every program with -9 at random moments and checks that it recovers.

The restarted program must end bit for bit like an uninterrupted one.

  python scripts/check_kills.py --output=DIR [--kills=200] [--seed=0] [--kinds=training,build]

On generated clips, with the smallest model:

  training   avs_jax.main; all checkpoints, the loss of every step and the reports
  build      scripts/build_dataset.py; the records and all other files
  flow       avs_jax.flow; the stored flow
  predict    avs_jax.predict --video, over the output of another video
  evaluate   avs_jax.evaluate --checkpoint

A program first runs without interruption. Then rounds follow: it is started, killed one to five
times and started again each time, and after the last kill it runs to the end. Every second kill
comes at a random moment of its life, the others shortly after a random change of its files. After
each kill, what has its final name must be whole: the earlier content, the new one, or nothing. At
the end of a round, all files must be those of the uninterrupted run, and no others.

The exit status is 0 if all of this holds. With 200 kills it takes half an hour on two cores.
"""

import argparse
import concurrent.futures
import dataclasses
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scripts.kill_jobs import Failed, Job, environment, look, make_jobs  # noqa: E402

KINDS = ("training", "build", "flow", "predict", "evaluate")
MAX_KILLS = 5  # of one round
MAX_CHANGES = 10  # of files that are awaited before a kill
LATEST_SECONDS = 0.1  # after such a change
POLL_SECONDS = 0.002
RUN_SECONDS = 900  # time limit of one run


@dataclasses.dataclass
class Counts:
    """What happened to one program."""

    kills: int = 0
    while_writing: int = 0
    rounds: int = 0
    too_late: int = 0
    seconds: float = 0.0


def main(argv: list[str] | None = None) -> int:
    """Prepares, kills, compares; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", required=True, help="folder of everything; must not exist")
    parser.add_argument("--kills", type=int, default=200, help="of all programs (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (%(default)s)")
    parser.add_argument("--kinds", default=",".join(KINDS), help="which programs (%(default)s)")
    parser.add_argument("--lanes", type=int, default=2, help="programs at a time (%(default)s)")
    args = parser.parse_args(argv)
    output, kinds = pathlib.Path(args.output).expanduser().resolve(), args.kinds.split(",")
    if unknown := set(kinds) - set(KINDS):
        parser.error(f"--kinds: no {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
    if output.exists():
        parser.error(f"{output} exists; name another --output")
    output.mkdir(parents=True)
    begun = time.monotonic()
    try:
        jobs = make_jobs(output, kinds)
        shares = {k: args.kills // len(kinds) + (i < args.kills % len(kinds))
                  for i, k in enumerate(kinds)}  # fmt: skip
        with concurrent.futures.ThreadPoolExecutor(args.lanes) as pool:
            drills = {k: pool.submit(drill, jobs[k], shares[k], args.seed) for k in kinds}
            for future in drills.values():
                future.add_done_callback(tell_failure)
            counts = {k: future.result() for k, future in drills.items()}
    except Failed as error:
        print(f"FAILED: {error}")
        return 1
    report(counts, time.monotonic() - begun)
    return 0


def tell_failure(future: concurrent.futures.Future) -> None:
    """Tells it at once: the program of the other lane may go on for minutes."""
    if future.exception():
        say(f"FAILED: {future.exception()}")


def report(counts: Mapping[str, Counts], seconds: float) -> None:
    say("program    kills  while writing  rounds  too late  a run takes")
    for kind, c in counts.items():
        say(f"{kind:10} {c.kills:5}  {c.while_writing:13}  {c.rounds:6}  {c.too_late:8}  "
            f"{c.seconds:9.1f} s")  # fmt: skip
    total = sum(c.kills for c in counts.values())
    say(f"PASSED: {total} kills, every program ended bit for bit alike; {seconds / 60:.0f} minutes")


def drill(job: Job, kills: int, seed: int) -> Counts:
    """Kills one program that often, in rounds."""
    rng, counts = random.Random(f"{seed}/{job.name}"), Counts()
    job.prepare()
    begun = time.monotonic()
    run_to_the_end(job)
    counts.seconds = time.monotonic() - begun
    job.keep()
    while counts.kills < kills:
        job.prepare()
        for kill in range(min(rng.randint(1, MAX_KILLS), kills - counts.kills)):
            awaits_change, begun = counts.kills % 2 == 1, time.monotonic()
            if not run_and_kill(job, rng, counts.seconds, awaits_change):
                counts.too_late += 1
                if kill == 0:  # a whole run, without the compilation of the first one
                    counts.seconds = min(counts.seconds, time.monotonic() - begun)
                break
            counts.kills += 1
            counts.while_writing += awaits_change
            job.check()
        run_to_the_end(job)
        job.compare()
        counts.rounds += 1
        say(f"{job.name}: {counts.kills} of {kills} kills, {counts.rounds} rounds alike")
    return counts


# ---- processes ----


def start(job: Job) -> subprocess.Popen:
    """Starts a program; its output is added to FOLDER.log."""
    with log_of(job).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, *job.arguments],
            cwd=ROOT, env=environment(job.folder.parent), stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip


def run_to_the_end(job: Job) -> None:
    process = start(job)
    try:
        status = process.wait(RUN_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        status = f"none after {RUN_SECONDS} s"
    if status:
        raise Failed(f"{job.name}: exit status {status}; see {log_of(job)}")


def run_and_kill(job: Job, rng: random.Random, seconds: float, awaits_change: bool) -> bool:
    """Starts a program and kills its process group; whether it was still running.

    Args:
      seconds: that a whole run takes; the kill comes at a random moment of them, or, if
        `awaits_change`, shortly after a random change of the program's files.
    """
    process, begun = start(job), time.monotonic()
    moment = begun + rng.uniform(0, seconds)
    if awaits_change:
        moment = begun + RUN_SECONDS
    changes, wanted, before = 0, rng.randint(1, MAX_CHANGES), look(job.folder)
    delay = rng.uniform(0, LATEST_SECONDS)
    while process.poll() is None and time.monotonic() < moment:
        time.sleep(POLL_SECONDS)
        if awaits_change and changes < wanted:
            now = look(job.folder)
            changes, before = changes + (now != before), now
            if changes == wanted:
                moment = time.monotonic() + delay
    if process.poll() is not None:
        if process.returncode:
            raise Failed(f"{job.name}: exit status {process.returncode}; see {log_of(job)}")
        return False
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return True


def log_of(job: Job) -> pathlib.Path:
    return job.folder.with_suffix(".log")


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
