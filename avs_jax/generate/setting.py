"""What a setting of the generator is: one row of `datasets.SETTINGS`."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from avs_jax.data.avsbench_folders import SPLITS

DETAILS = "generated_details.json"  # what else the generator knows and the layout has no place for


@dataclasses.dataclass(frozen=True)
class Options:
    """What a user chooses; every byte of a dataset follows from it."""

    seed: int
    size: int  # height of the frames in pixels
    kind: str = ""  # one of the setting's kinds
    num_categories: int | None = None  # None where the setting fixes it


class Plan(Protocol):
    """What is decided about a clip before it is drawn."""

    name: str


@dataclasses.dataclass(frozen=True)
class Setting:
    """How clips of one kind are planned, drawn and laid out.

    `counts`, `size` and `num_categories` hold unless the user says otherwise.

    Attributes:
      plan: (options, split, index) -> plan of a clip; draws no pixels and no samples.
      paths: (root, plan) -> every file of the clip.
      write: (root, plan, options) draws the clip and writes these files.
      tables: (plans of all clips, options) -> name and text of every file beside the clips, in the
        order in which they are written. The last one is the table that readers look for.
      splits: counts of train, val and test -> counts of the splits that `plan` knows.
    """

    title: str  # one line for --help
    example: str  # flags of the example in --help
    counts: tuple[int, int, int]  # clips per split
    plan: Callable[[Options, str, int], Any]
    paths: Callable[[Path, Any], Iterable[Path]]
    write: Callable[[Path, Any, Options], None]
    tables: Callable[[Sequence[Any], Options], Mapping[str, str]]
    size: int = 128  # height of the frames in pixels
    num_categories: int | None = None  # None: the setting has a set of its own
    kinds: tuple[str, ...] = ()  # the choices of --kind, the default first
    splits: Callable[[Mapping[str, int]], Mapping[str, int]] = dict
    version: int = 1  # raised whenever the same options would give other clips

    def default_counts(self) -> dict[str, int]:
        """Clips per split unless the user says otherwise."""
        return dict(zip(SPLITS, self.counts, strict=True))
