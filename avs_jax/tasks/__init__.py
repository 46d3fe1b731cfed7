"""The tasks, by name; a page is imported only when its task is used.

A page has `make_task`; PREDICT_FLAGS, the flags of predict that its `predict_video` takes;
PREDICT_HELP, its paragraph in predict's --help; and, if need be, `complete_config`.
"""

import importlib
import types

from ml_collections import ConfigDict

from avs_jax.spec import InputError, nearest
from avs_jax.task import PredictFlag, Task

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


def predict_flags() -> dict[str, PredictFlag]:
    """The flags of predict of all tasks; their texts say which task reads them."""
    readers: dict[str, dict[str, list[str]]] = {}  # flag -> text -> tasks
    repeated, per_video = set(), set()
    for task in TASKS:
        for name, flag in _import_page(task).PREDICT_FLAGS.items():
            readers.setdefault(name, {}).setdefault(flag.text, []).append(task)
            repeated |= {name} if flag.is_repeated else set()
            per_video |= {name} if flag.is_per_video else set()
    return {
        name: PredictFlag(
            "; ".join(f"{', '.join(tasks)}: {text}" for text, tasks in texts.items()),
            name in repeated,
            name in per_video,
        )
        for name, texts in readers.items()
    }


def predict_help() -> str:
    """The paragraphs of all tasks in predict's --help."""
    return "\n".join(_import_page(task).PREDICT_HELP for task in TASKS)


def _import_page(name: str) -> types.ModuleType:
    return importlib.import_module(f"avs_jax.tasks.{name}")


def _page(config: ConfigDict) -> types.ModuleType:
    if config.task not in TASKS:
        near = ", ".join(nearest(config.task, TASKS) or TASKS)
        raise InputError(f"config.task = {config.task!r}: no such task; nearest: {near}")
    return _import_page(config.task)
