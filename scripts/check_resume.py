"""Checks that a run killed with -9 ends exactly like an uninterrupted one.

  python scripts/check_resume.py --config=configs/s4_ama.py:demo --output=DIR --kills=4
      --config.train.steps=36 --config.train.checkpoint_every=6

Trains in OUTPUT/run without interruption and moves the result to OUTPUT/whole. Then trains in
OUTPUT/run again, where the same command is repeatedly killed and restarted: alternately at a random
moment and while it writes its second checkpoint, so that every second run makes progress. The last
checkpoints (parameters, statistics, optimizer, step) are compared bit for bit. All other flags go
to avs_jax.main. The exit status is 0 if a run was killed and nothing differs.
"""

import argparse
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp

ROOT = pathlib.Path(__file__).resolve().parent.parent
UNFINISHED = "*.orbax-checkpoint-tmp*"  # folders of a save in progress
POLL_SECONDS = 0.002
LONGEST_LIFE = 30.0  # seconds, if killed at a random moment
SAVE_TO_KILL = 2  # counted from the start of the run


def main(argv: list[str] | None = None) -> int:
    """Runs, kills, compares; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--output", required=True, help="folder of both runs; must not hold them")
    parser.add_argument("--kills", type=int, default=6, help="how many (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (%(default)s)")
    args, rest = parser.parse_known_args(argv)
    output = pathlib.Path(args.output).expanduser().resolve()
    whole, killed = output / "whole", output / "run"
    for workdir in (whole, killed):
        if workdir.exists():
            parser.error(f"{workdir} exists; name another --output")
    output.mkdir(parents=True, exist_ok=True)

    print(f"{whole}: an uninterrupted run", flush=True)
    run_to_the_end(rest, killed)
    killed.rename(whole)
    last = newest_step(whole)
    rng, num_killed = random.Random(args.seed), 0
    for i in range(args.kills):
        was_killed, how = run_and_kill(rest, killed, rng, in_save=i % 2 == 1)
        num_killed += was_killed
        print(
            f"kill {i + 1}/{args.kills}: {how}; newest checkpoint {newest_step(killed)}", flush=True
        )
    run_to_the_end(rest, killed)

    if newest_step(killed) != last:
        print(f"FAILED: ends at step {newest_step(killed)}, the whole run at {last}")
        return 1
    differing = compare(whole, killed, last)
    if differing:
        print(f"FAILED: {len(differing)} array(s) differ at step {last}:\n  ", end="")
        print("\n  ".join(differing))
        return 1
    if not num_killed:
        print("FAILED: no run was killed; more steps between checkpoints make room for it")
        return 1
    print(f"PASSED: after {num_killed} kill(s) step {last} is the same, bit for bit")
    return 0


def start(flags: list[str], workdir: pathlib.Path) -> subprocess.Popen:
    """Starts training; its output goes to WORKDIR.log."""
    command = [sys.executable, "-m", "avs_jax.main", f"--workdir={workdir}", *flags]
    with workdir.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)


def run_to_the_end(flags: list[str], workdir: pathlib.Path) -> None:
    if start(flags, workdir).wait():
        raise SystemExit(f"the run failed; see {workdir.with_suffix('.log')}")


def run_and_kill(
    flags: list[str], workdir: pathlib.Path, rng: random.Random, in_save: bool
) -> tuple[bool, str]:
    """Starts a run and kills its process group, if `in_save` at a random moment of a save.

    Returns:
      (whether it was killed, what happened).
    """
    left = unfinished_saves(workdir)  # by the previous kill; the run removes them
    process, begun = start(flags, workdir), time.monotonic()
    deadline = begun + (LONGEST_LIFE * rng.random() if not in_save else float("inf"))
    what, saves = "at a random moment", set()
    while process.poll() is None:
        now = unfinished_saves(workdir)
        left &= now
        saves |= now - left
        if len(saves) == SAVE_TO_KILL:
            time.sleep(rng.uniform(0, 0.3))
            what = "in a save"
            break
        if time.monotonic() > deadline:
            break
        time.sleep(POLL_SECONDS)
    life = time.monotonic() - begun
    if process.poll() is not None:
        if process.returncode:
            raise SystemExit(f"the run failed; see {workdir.with_suffix('.log')}")
        return False, f"too late, it was done after {life:.1f} s"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    unfinished = len(unfinished_saves(workdir))
    return True, f"{what}, after {life:.1f} s, {unfinished} unfinished save(s) left"


def unfinished_saves(workdir: pathlib.Path) -> set[str]:
    """Names of the folders of unfinished saves."""
    return {path.name for path in (workdir / "checkpoints").glob(UNFINISHED)}


def newest_step(workdir: pathlib.Path) -> int | None:
    """The newest complete checkpoint, or None."""
    steps = [int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()]
    return max(steps, default=None)


def compare(first: pathlib.Path, second: pathlib.Path, step: int) -> list[str]:
    """Paths of the arrays that differ between both runs' checkpoints of a step."""
    one, other = (read_arrays(workdir / "checkpoints" / str(step)) for workdir in (first, second))
    return [
        path
        for path in sorted(one.keys() | other.keys())
        if path not in one
        or path not in other
        or (one[path].dtype, one[path].shape) != (other[path].dtype, other[path].shape)
        or one[path].tobytes() != other[path].tobytes()
    ]


def read_arrays(directory: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint by path."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        stored = checkpointer.metadata(directory / "state").item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
        tree = checkpointer.restore(
            directory / "state", args=ocp.args.PyTreeRestore(restore_args=as_numpy)
        )
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


if __name__ == "__main__":
    sys.exit(main())
