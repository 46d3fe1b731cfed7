"""One process of tests/runtime/test_processes.py: joins the job, computes, writes, and may die.

python process_worker.py COORDINATOR NUM_PROCESSES PROCESS_ID FOLDER
"""

import os
import pathlib
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np

from avs_jax.results.counts import FrameCounter
from avs_jax.runtime import evaluation, sharding
from avs_jax.runtime.checksums import tree_checksums
from avs_jax.runtime.lock import locked
from avs_jax.runtime.processes import distributed_job
from avs_jax.spec import InputError
from avs_jax.tasks import make_task
from configs.segment import segment_config

NUM_CLIPS, BATCH = 5, 4  # of three rows that only fill the batch, process 1 has two


def count_clips(rows: range):
    """Counts of the rows of two batches of generated predictions."""
    counter = FrameCounter(2, {"name": "test"})
    for first in range(0, 2 * BATCH, BATCH):
        batch = {"clip_id": [], "category": [], "valid": [], "labels": []}
        preds = []
        for clip in range(first + rows.start, first + rows.stop):
            rng = np.random.default_rng(clip)
            preds.append(rng.random((2, 8, 8), np.float32))
            batch["clip_id"].append(f"clip{clip}" if clip < NUM_CLIPS else "")
            batch["category"].append("kind" if clip < NUM_CLIPS else "")
            batch["valid"].append(np.full(2, clip < NUM_CLIPS))
            batch["labels"].append((rng.random((2, 8, 8)) < 0.5).astype(np.uint8))
        batch["valid"], batch["labels"] = np.stack(batch["valid"]), np.stack(batch["labels"])
        batch["supervised"] = batch["valid"]
        batch["frame_index"] = np.tile(np.arange(2, dtype=np.int32), (len(rows), 1))
        counter.add(np.stack(preds), batch)
    return counter.result()


def main(coordinator: str, count: int, process: int, folder: pathlib.Path) -> None:
    """Sums over the mesh, gathers counts; then process 1 is killed and process 0 continues."""
    with (
        distributed_job(coordinator, count, process, expected=(InputError,)),
        locked(folder, "test", coordinator),
    ):
        mesh = sharding.make_mesh(segment_config())
        rows = BATCH // count
        values = np.arange(BATCH, dtype=np.float32)[process * rows : (process + 1) * rows]
        batch = sharding.put_batch({"x": values}, mesh)
        add = jax.jit(lambda x: jnp.square(x).sum(), out_shardings=sharding.replicated(mesh))
        np.save(folder / f"sum{process}.npy", jax.device_get(add(batch["x"])))
        (folder / f"checksum{process}").write_text(tree_checksums(batch)["x"])
        share = range(process * rows, (process + 1) * rows)
        counts = evaluation._gather(make_task(segment_config()), count_clips(share), rows)
        counts.save(folder / f"counts{process}.npz")
        if process == 1:
            (folder / "seen_lock").write_bytes((folder / ".lock").read_bytes())
            os.kill(os.getpid(), signal.SIGKILL)
        while True:
            jax.device_get(add(batch["x"]))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), pathlib.Path(sys.argv[4]))
