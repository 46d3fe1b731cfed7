"""The clips that the csv of one of AVSBench's settings lists."""

import csv
import dataclasses
import io
import pathlib
import re
from collections.abc import Iterator, Mapping

from avs_jax.data.avsbench_folders import SPLITS, DatasetLayoutError, Setting
from avs_jax.data.input_files import read_text


@dataclasses.dataclass(frozen=True)
class Row:
    """What a row of the csv says about its clip; `columns` are the csv's, by their names there."""

    name: str  # unique
    split: str
    category: str  # what sounds; "" where the csv does not say
    subset: str  # v1s, v1m or v2 in avss, else ""
    num_frames: int
    with_mask: tuple[int, ...]  # the frames, from 0, that have ground truth
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False)

    def path(self, root: pathlib.Path, template: str, t: int = 0) -> pathlib.Path:
        """A template of the setting filled in for frame t."""
        fields = {key: getattr(self, key) for key in ("name", "split", "category", "subset")}
        return root / template.format(number=t + 1, t=t, **fields)


def read_csv(setting: Setting, root: pathlib.Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and columns of every row of the csv, with the fields of `columns` added.

    Raises:
      DatasetLayoutError: columns are missing. InputError: the file cannot be read; names the line.
    """
    path = root / setting.csv
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    try:
        header = reader.fieldnames or [""]
        columns = {field: name or header[0] for field, name in setting.columns.items()}
        missing = [columns[field] for field in setting.required if columns[field] not in header]
        if missing:
            raise DatasetLayoutError(
                f"{path}: columns {header}, expected {', '.join(missing)} among them"
            )
        for found in reader:
            values = {k: (v or "").strip() for k, v in found.items() if isinstance(k, str)}
            fields = {field: values.get(name, "") for field, name in columns.items()}
            yield reader.line_num, values | fields
    except csv.Error as error:
        raise DatasetLayoutError(f"{path}, line {reader.line_num + 1}: {error}") from error


def read_rows(
    setting: Setting, root: pathlib.Path, any_category: bool = False
) -> tuple[list[Row], list[str]]:
    """The csv's rows that can be clips, in its order, and what is wrong with the others.

    Args:
      any_category: accept categories that the setting does not have.
    """
    rows, problems, seen = [], [], set()
    for line, values in read_csv(setting, root):
        try:
            row = _parse_row(setting, values, seen, any_category)
        except ValueError as error:
            problems.append(f"{root / setting.csv}, line {line}: {error}")
            continue
        seen.add(row.name)
        rows.append(row)
    return rows, problems


def _parse_row(
    setting: Setting, values: Mapping[str, str], seen: set[str], any_category: bool
) -> Row:
    name, split = values["name"], values["split"]
    subset = values.get("subset", "")
    if split not in SPLITS:
        raise ValueError(f"split {split!r} of {name} is none of {', '.join(SPLITS)}")
    if subset not in setting.num_frames:
        choices = ", ".join(setting.num_frames)
        raise ValueError(f"{setting.columns['subset']} {subset!r} of {name} is none of {choices}")
    for field in setting.required:
        if not is_safe_name(values[field]):
            raise ValueError(f"{field} {values[field]!r} cannot be a file's")
    category = values["category"]
    if not any_category and setting.categories and category not in setting.categories:
        raise ValueError(
            f"category {category!r} of {name} is none of the {len(setting.categories)} of "
            f"{setting.title}"
        )
    if name in seen:
        raise ValueError(f"{name} is listed twice")
    with_mask = setting.labeled_frames(split, subset)
    return Row(name, split, category, subset, setting.num_frames[subset], with_mask, values)


def is_safe_name(name: str) -> bool:
    """Whether a name read from a file can stand for one level of a path."""
    return bool(name) and name not in (".", "..") and not re.search(r"[/\\\0]", name)
