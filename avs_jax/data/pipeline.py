"""Batches from records: random access to array_record files, shuffling, grain's read-ahead. No jax.

A training loader's position is the step: batch s holds positions s * batch_size ... of an endless
sequence in which every run of num_clips positions is one shuffled epoch. What a position holds
follows from the seed alone, so a loader can start at any step and gives the same batches on any
number of workers and processes.
"""

import functools
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from avs_jax.spec import InputError
from avs_jax.task import Record, Rows, stack_rows

_SHUFFLE, _AUGMENT = 1, 2  # streams of random numbers
_ENDLESS = 1 << 40  # steps


def open_records(config: Any, split: str) -> Sequence[Record]:
    """The records of one split, by index, from array_record files; nothing is read yet.

    config.data.dataset names a TFDS dataset, "name" or "name/variant"; the newest version counts.

    Raises:
      FileNotFoundError: the dataset is not there; names the folders looked in.
      ValueError: several variants and none is named, or no such split; names those there are.
    """
    import tensorflow_datasets as tfds  # slow: only who opens records waits for it

    root = pathlib.Path(config.data.data_dir).expanduser().resolve()
    home = root / config.data.dataset
    found: dict[pathlib.Path, list[pathlib.Path]] = {}
    for pattern in ("*/dataset_info.json", "*/*/dataset_info.json"):
        for path in home.glob(pattern):
            if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name):
                found.setdefault(path.parent.parent, []).append(path.parent)
    if not found:
        raise FileNotFoundError(
            f"dataset {config.data.dataset!r} not found: looked for a version of it in {home} and "
            f"{home}/*, where {root} is config.data.data_dir = {config.data.data_dir!r}"
        )
    if len(found) > 1:
        variants = sorted(str(path.relative_to(root)) for path in found)
        raise InputError(
            f"config.data.dataset {config.data.dataset!r} is one of {variants}: which?"
        )
    (versions,) = found.values()
    newest = max(versions, key=lambda path: tuple(map(int, path.name.split("."))))
    builder = tfds.builder_from_directory(newest)
    if split not in builder.info.splits:
        raise InputError(f"no split {split!r} in {newest}, there are {sorted(builder.info.splits)}")
    return builder.as_data_source(split)


def metadata(records: Sequence[Record]) -> Mapping[str, Any]:
    """What the dataset's builder noted; nothing where the records are not a dataset's."""
    info = getattr(records, "dataset_info", None)
    return (info.metadata if info is not None else None) or {}


def num_clips(config: Any, split: str) -> int:
    """Clips of a split."""
    return len(open_records(config, split))


def num_steps_per_epoch(config: Any, batch_size: int, split: str = "train") -> float:
    """Steps that use every clip once; whole only where batch_size divides their number."""
    return num_clips(config, split) / batch_size


# ---- batches ----


@functools.lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, _SHUFFLE, epoch)).permutation(count)


class TrainBatches:
    """Endless random access to batches: item i is this process's part of step start_step + i.

    Process p of P holds rows p * batch_size/P ... of the batch, so the processes' rows in order are
    the one-process batch.
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
    ):
        if not len(records):
            raise InputError("no training record")
        self.records, self.rows, self.batch_size, self.seed = records, rows, batch_size, seed
        self.places = _process_places(batch_size, process_index, process_count)
        self.start_step = start_step

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, item: int) -> dict[str, Any]:
        first = (self.start_step + int(item)) * self.batch_size
        rows = []
        for position in range(first + self.places.start, first + self.places.stop):
            epoch, offset = divmod(position, len(self.records))
            record = int(_epoch_order(self.seed, epoch, len(self.records))[offset])
            rng = np.random.default_rng((self.seed, _AUGMENT, epoch, record))
            rows.append(self.rows.prepare(self.records[record], rng))
        return stack_rows(rows, self.rows.fields)


class EvalBatches:
    """The batches of one pass, in the records' order; empty rows fill the last one."""

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
    """Iterates over batches made ahead of use, by threads or by worker processes; every time anew.

    Worker processes are spawned: the program needs an `if __name__ == "__main__"` guard. Use as a
    context manager, or call close(), to end them.
    """

    def __init__(self, batches: Sequence[dict[str, Any]], num_workers: int = 0, prefetch: int = 2):
        self.batches, self.num_workers, self.prefetch = batches, num_workers, max(1, prefetch)
        self._iterator: Any = None

    def __len__(self) -> int:
        """Batches of one pass; of a training loader a number that is never reached."""
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
                grain.MultiprocessingOptions(self.num_workers, per_worker_buffer_size=self.prefetch)
            )
        self._iterator = iter(dataset)
        return self._iterator

    def close(self) -> None:
        """Ends threads and workers of the iteration under way, if any."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
