"""How Orbax writes and reads the items of a checkpoint.

Orbax's own registry of handlers, which other checkpoints of the process may use, stays as it is.
"""

import asyncio
import contextlib
import logging
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from avs_jax.runtime.checksums import json_checksum, tree_checksums

KEPT = "kept"  # item of converted weights
CHECKSUMS = "checksums"  # item: {item: {path: checksum} for arrays, or one checksum for JSON}
FULL_DISK = "No space left on device"


def save_args(
    trees: Mapping[str, Any], values: Mapping[str, Mapping], metrics: Mapping | None = None
) -> ocp.args.Composite:
    """What Orbax saves of one checkpoint: the given items and their checksums.

    Args:
      trees: item -> nested arrays. Their checksums are computed here, before a step that runs
        during the save can take over their memory.
      values: item -> JSON object.
      metrics: the item of this name, which Orbax saves by itself.
    """
    checksums: dict[str, Any] = {item: tree_checksums(tree) for item, tree in trees.items()}
    checksums |= {item: json_checksum(value) for item, value in values.items()}
    if metrics is not None:
        checksums["metrics"] = json_checksum(metrics)
    return ocp.args.Composite(
        **{item: ocp.args.PyTreeSave(tree) for item, tree in trees.items()},
        **{item: ocp.args.JsonSave(value) for item, value in values.items()},
        **{CHECKSUMS: ocp.args.JsonSave(checksums)},
    )


def item_handlers() -> ocp.handlers.CheckpointHandlerRegistry:
    """Orbax's handlers of the items of a checkpoint."""
    registry = ocp.DefaultCheckpointHandlerRegistry()
    for item in ("state", KEPT):
        registry.add(item, ocp.args.PyTreeSave, state_handler())
    for item in ("loader", "config", "validation", CHECKSUMS):
        registry.add(item, ocp.args.JsonSave, ocp.JsonCheckpointHandler())
    return registry


def state_handler() -> ocp.PyTreeCheckpointHandler:
    """Orbax's handler of nested arrays, with the array handlers below."""
    return ocp.PyTreeCheckpointHandler(
        type_handler_registry=ocp.type_handlers.create_type_handler_registry(
            (np.number, ocp.type_handlers.ScalarHandler()),
            (np.ndarray, _NumpyHandler()),
            # By default every device that holds a copy writes a slice of it, which takes hundreds
            # of compilations at the first save. Every restore states its own sharding.
            (
                jax.Array,
                _JaxHandler(use_replica_parallel=False, enable_write_sharding_file=False),
            ),
        )
    )


class _NamesErrors:
    """Orbax's handler, with errors that name the array."""

    async def metadata(self, infos):
        return await _one_by_one(super().metadata, infos)

    async def deserialize(self, infos, args=None):
        return await _one_by_one(super().deserialize, infos, args)


class _NumpyHandler(_NamesErrors, ocp.type_handlers.NumpyHandler):
    pass


class _JaxHandler(_NamesErrors, ocp.type_handlers.ArrayHandler):
    async def metadata(self, infos):
        # Only shape and dtype are needed; older checkpoints have the sharding in a file to parse.
        return await _NumpyHandler().metadata(infos)


async def _one_by_one(read: Callable, *sequences: Sequence) -> list:
    """Calls `read` for each array and waits for all of them.

    Orbax stops at the first error. It then closes the event loop to which the other reads report,
    and each of them prints a traceback.
    """
    calls = [read(*([value] for value in row)) for row in zip(*sequences, strict=True)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    for info, result in zip(sequences[0], results, strict=True):
        if isinstance(result, BaseException):
            raise ArrayError(info.name) from result
    return [value for (value,) in results]


class ArrayError(Exception):
    """One array cannot be read; the cause says why."""


@contextlib.contextmanager
def full_disk_is_os_error(
    directory: pathlib.Path,
    advice: str = "the last complete one is kept; make room and give the same command to resume "
    "from it",
) -> Iterator[None]:
    """Turns Orbax's report of a full disk, a ValueError of many lines, into an OSError of one."""
    try:
        with full_disk_is_not_logged():
            yield
    except Exception as error:
        if FULL_DISK not in str(error):
            raise
        raise OSError(f"{directory}: no space left for a checkpoint; {advice}") from error


@contextlib.contextmanager
def full_disk_is_not_logged() -> Iterator[None]:
    """Drops what Orbax's background threads log about a full disk, each with its traceback.

    The error itself arrives at the next save, wait or close.
    """

    def is_not_a_full_disk(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return FULL_DISK not in record.getMessage() and FULL_DISK not in str(error)

    log = logging.getLogger("absl")
    log.addFilter(is_not_a_full_disk)
    try:
        yield
    finally:
        log.removeFilter(is_not_a_full_disk)
