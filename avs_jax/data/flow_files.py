"""Clips of a dataset's folder, and the files that hold their flow: flow_{t:04d}.npy, float16.

A file gets its name when it is complete, and counts only if header and size agree.
"""

import csv
import dataclasses
import math
import os
import pathlib
import re
from typing import NamedTuple

import numpy as np

from avs_jax.spec import InputError

LARGEST = 65_000  # px; float16 ends there, and so does what a builder reads


class FlowError(InputError):
    """A folder that is not the dataset's, or an output that is another run's; one line."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Where a dataset keeps its clips, below the folder of its csv.

    Attributes:
      csv: that lists the clips; folder: that may hold it, below the root given.
      id_column: of the clip's name, "" the first.
      levels: the columns that name the folders of its flow.
      frames: folder of the frames, by layout; frame_levels: the columns that name those in it.
      videos: folder of the raw videos, likewise.
    """

    csv: str
    folder: str
    id_column: str
    levels: tuple[str, ...]
    frames: dict[str, str]
    frame_levels: tuple[str, ...]
    videos: str


DATASETS = {
    "s4": Dataset(
        csv="s4_meta_data.csv",
        folder="Single-source",
        id_column="name",
        levels=("split", "category"),
        frames={
            "object224": "s4_data/visual_frames",
            "vct384": "s4_data_384/visual_frames_384",
        },
        frame_levels=("split", "category"),
        videos="s4_data/raw_videos",
    ),
    "ms3": Dataset(
        csv="ms3_meta_data.csv",
        folder="Multi-sources",
        id_column="",
        levels=("split",),
        frames={
            "object224": "ms3_data/visual_frames",
            "vct384": "ms3_data_384/visual_frames_384",
        },
        frame_levels=(),
        videos="ms3_data/raw_videos",
    ),
}


class Clip(NamedTuple):
    """One clip.

    Attributes:
      place: of its flow files, below the dataset's flow root.
      frames: folder of its frames. video: its raw video, which need not be there.
    """

    place: pathlib.PurePosixPath
    frames: pathlib.Path
    video: pathlib.Path


def list_clips(dataset: str, root: str | os.PathLike, layout: str = "") -> list[Clip]:
    """The clips of a dataset's csv, in its order.

    Args:
      layout: "object224" or "vct384"; "" where the folder holds one of them only.

    Raises:
      FlowError: the folder does not hold the dataset, or both layouts; a name that is no file's.
    """
    spec, root = DATASETS[dataset], pathlib.Path(root).expanduser().absolute()
    home = next((p for p in (root, root / spec.folder) if (p / spec.csv).is_file()), None)
    if home is None:
        raise FlowError(f"{spec.csv} not found in {root} and {root / spec.folder}")
    present = [name for name, folder in spec.frames.items() if (home / folder).is_dir()]
    if layout and layout not in present:
        raise FlowError(f"--layout={layout}: not below {home}; there are {present}")
    if not layout and len(present) != 1:
        raise FlowError(f"{home} holds the layouts {present}: choose one with --layout")
    frames = home / spec.frames[layout or present[0]]
    clips = []
    with open(home / spec.csv, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or [""]
        id_column = spec.id_column or columns[0]
        missing = {id_column, *spec.levels} - set(columns)
        if missing:
            raise FlowError(f"{home / spec.csv}: no column {sorted(missing)}")
        for row in reader:
            named = {key: (row[key] or "").strip() for key in (id_column, *spec.levels)}
            for key, value in named.items():
                if value in ("", ".", "..") or re.search(r"[/\\\0]", value):
                    raise FlowError(
                        f"{home / spec.csv}, line {reader.line_num}: {key} {value!r} cannot be a "
                        "file's"
                    )
            name = named[id_column]
            inner = pathlib.PurePosixPath(*(named[level] for level in spec.frame_levels), name)
            video = home / spec.videos / inner.parent / f"{name}.mp4"
            place = pathlib.PurePosixPath(*(named[level] for level in spec.levels), name)
            clips.append(Clip(place, frames / inner, video))
    return clips


def frame_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The frames *_1.png, *_2.png, ... of a clip.

    Raises:
      FlowError: there are none, or numbers are missing.
    """
    numbered = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        match = re.fullmatch(r".*_(\d+)\.(png|jpg)", path.name)
        if match:
            numbered[int(match[1])] = path
    if not numbered or sorted(numbered) != list(range(1, len(numbered) + 1)):
        raise FlowError(f"{folder}: frames {sorted(numbered)}, expected 1, 2, ...")
    return [numbered[number] for number in sorted(numbered)]


def is_whole(path: pathlib.Path, shape: tuple[int, ...]) -> bool:
    """Whether a file is a complete float16 array of that shape; its numbers are not read."""
    try:
        with open(path, "rb") as file:
            if np.lib.format.read_magic(file) != (1, 0):
                return False
            header = np.lib.format.read_array_header_1_0(file)
            end = file.tell() + 2 * math.prod(shape)
        return header == (shape, False, np.dtype(np.float16)) and path.stat().st_size == end
    except (OSError, ValueError):
        return False


def write_array(path: pathlib.Path, array: np.ndarray) -> None:
    """Writes an array as float16; the name appears when the file is complete.

    Raises:
      FlowError: a number that float16 does not hold.
    """
    if not np.all(np.abs(array) < LARGEST):  # also where it is not a number
        raise FlowError(f"{path}: flow that is not finite or beyond {LARGEST} px")
    unfinished = path.with_name(f"{path.name}.unfinished")
    with open(unfinished, "wb") as file:
        np.lib.format.write_array(file, np.ascontiguousarray(array, np.float16), version=(1, 0))
    os.replace(unfinished, path)
