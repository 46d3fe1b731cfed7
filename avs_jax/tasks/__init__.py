"""The tasks, by name; a page is imported only when its task is used."""

import importlib
import types

from ml_collections import ConfigDict

from avs_jax.spec import InputError, nearest
from avs_jax.task import Task

TASKS = ("segment", "ground", "refer", "track", "align", "classify", "describe")


def make_task(config: ConfigDict) -> Task:
    """The task that config.task names; InputError for an unknown name or a key that is missing."""
    page = _page(config)
    try:
        return page.make_task(config)
    except AttributeError as error:
        if not isinstance(error.args[0], KeyError):  # ConfigDict wraps one where a key is missing
            raise
        name = str(error.args[0].args[0]).splitlines()[0]
        raise InputError(f"the configuration of task {config.task} lacks {name}") from error


def complete_config(config: ConfigDict, stored: ConfigDict | None = None) -> ConfigDict:
    """The configuration with what its task takes from the records, such as a vocabulary.

    Args:
      stored: of the checkpoint that a run resumes from, None for a new run.
    """
    complete = getattr(_page(config), "complete_config", None)
    return config if complete is None else complete(config, stored)


def _page(config: ConfigDict) -> types.ModuleType:
    if config.task not in TASKS:
        near = ", ".join(nearest(config.task, TASKS) or TASKS)
        raise InputError(f"config.task = {config.task!r}: no such task; nearest: {near}")
    return importlib.import_module(f"avs_jax.tasks.{config.task}")
