"""The tasks, by name; a page is imported only when its task is used."""

import importlib

from ml_collections import ConfigDict

from avs_jax.spec import InputError, nearest
from avs_jax.task import Task

TASKS = ("segment", "ground")


def make_task(config: ConfigDict) -> Task:
    """The task that config.task names; InputError for an unknown name in the configuration."""
    if config.task not in TASKS:
        near = ", ".join(nearest(config.task, TASKS) or TASKS)
        raise InputError(f"config.task = {config.task!r}: no such task; nearest: {near}")
    return importlib.import_module(f"avs_jax.tasks.{config.task}").make_task(config)
