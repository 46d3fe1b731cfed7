"""Batches from records: shuffling, grain's read-ahead. No jax.

A training loader's position is the step: batch s holds positions s * batch_size ... of an endless
sequence of shuffled epochs. A position's content depends on the seed alone, so a loader can start
at any step and yields the same batches on any number of workers and processes.
"""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from avs_jax.spec import InputError
from avs_jax.stopping import leave_stopping_to
from avs_jax.task import Record, Rows, stack_rows

_SHUFFLE, _AUGMENT, _ALTER = 1, 2, 3  # streams of random numbers
_ENDLESS = 1 << 40  # steps


@functools.lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, _SHUFFLE, epoch)).permutation(count)


class TrainBatches:
    """Endless random access to batches: item i is this process's share of step start_step + i.

    Process p of P holds rows p * batch_size/P ... of the batch, so the concatenated rows of all
    processes equal the one-process batch.
    """

    def __init__(
        self,
        records: Sequence[Record],
        rows: Rows,
        batch_size: int,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
        start_step: int = 0,
        alter: Callable[[Sequence[Record], int, np.random.Generator], Record] | None = None,
    ):
        """`alter` replaces a record in one epoch: (records, index, random generator) -> record."""
        if not len(records):
            raise InputError("no training record")
        self.records, self.rows, self.batch_size, self.seed = records, rows, batch_size, seed
        self.places = _process_places(batch_size, process_index, process_count)
        self.start_step, self.alter = start_step, alter

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, item: int) -> dict[str, Any]:
        first = (self.start_step + int(item)) * self.batch_size
        rows = []
        for position in range(first + self.places.start, first + self.places.stop):
            epoch, offset = divmod(position, len(self.records))
            record = int(_epoch_order(self.seed, epoch, len(self.records))[offset])
            rng = np.random.default_rng((self.seed, _AUGMENT, epoch, record))
            rows.append(self.rows.prepare(self._read(record, epoch), rng))
        return stack_rows(rows, self.rows.fields)

    def _read(self, record: int, epoch: int) -> Record:
        if self.alter is None:
            return self.records[record]
        rng = np.random.default_rng((self.seed, _ALTER, epoch, record))
        return self.alter(self.records, record, rng)


class EvalBatches:
    """The batches of one pass, in the order of the records; empty rows pad the last one."""

    def __init__(
        self,
        records: Sequence[Record],
        rows: Rows,
        batch_size: int,
        process_index: int = 0,
        process_count: int = 1,
    ):
        self.records, self.rows, self.batch_size = records, rows, batch_size
        self.places = _process_places(batch_size, process_index, process_count)

    def __len__(self) -> int:
        return -(-len(self.records) // self.batch_size)

    def __getitem__(self, item: int) -> dict[str, Any]:
        first = int(item) * self.batch_size
        rows = [
            self.rows.prepare(self.records[position], None)
            if position < len(self.records)
            else self.rows.empty(train=False)
            for position in range(first + self.places.start, first + self.places.stop)
        ]
        return stack_rows(rows, self.rows.fields)


def _process_places(batch_size: int, process_index: int, process_count: int) -> range:
    if batch_size < 1 or batch_size % process_count:
        raise InputError(
            f"a batch of {batch_size} rows cannot be shared by {process_count} processes"
        )
    share = batch_size // process_count
    return range(process_index * share, (process_index + 1) * share)


class Loader:
    """Iterates over batches that threads or worker processes prefetch; each iteration restarts.

    Worker processes are spawned, so the program needs an `if __name__ == "__main__"` guard. Use it
    as a context manager, or call close(): then no worker and no shared memory is left.
    """

    def __init__(self, batches: Sequence[dict[str, Any]], num_workers: int = 0, prefetch: int = 2):
        self.batches, self.num_workers, self.prefetch = batches, num_workers, max(1, prefetch)
        self._iterator: Any = None

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.close()
        # More threads than cores only delay the first batch.
        threads = min(4, max(1, (os.cpu_count() or 1) // max(1, self.num_workers)))
        ahead = threads if self.num_workers else max(threads, self.prefetch)
        dataset = grain.MapDataset.source(self.batches).to_iter_dataset(
            grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
        )
        if self.num_workers:
            if not flags.FLAGS.is_parsed():  # a program without absl; grain asks for a flag
                flags.FLAGS.mark_as_parsed()
            dataset = dataset.mp_prefetch(
                grain.MultiprocessingOptions(
                    self.num_workers, per_worker_buffer_size=self.prefetch
                ),
                functools.partial(_start_worker, os.getpid()),
            )
        self._iterator = iter(dataset)
        return map(_unlinked, self._iterator)

    def close(self) -> None:
        """Stops threads and workers of the current iteration, if any."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _start_worker(parent: int, index: int, count: int) -> None:
    del index, count
    leave_stopping_to(parent)


def _unlinked(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch, with the names of its shared memory removed.

    The memory stays as long as an array uses it. grain would remove the name with the array, which
    a program that ends may never get to, and Python then reports leaked shared memory.
    """
    for array in batch.values():
        memory = getattr(array, "shm", None)
        if memory is not None:
            memory.unlink()
            array._unlink_on_del = False
    return batch
