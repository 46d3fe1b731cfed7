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
    """Where a dataset keeps its clips, below the folder of its csv; {column} is the csv's.

    Attributes:
      csv: that lists the clips; folders: one of them may hold it, below the root given.
      id_column: of the clip's name, "" the first, written {name} below.
      place: of a clip's flow.
      frames: folder of a clip's frames, by layout.
      video: a clip's raw video; "" where the dataset has none.
      side: px that pictures are squashed to; None: they are of one size as they are.
    """

    csv: str
    folders: tuple[str, ...]
    id_column: str
    place: str
    frames: dict[str, str]
    video: str
    side: int | None = None

    def columns(self) -> set[str]:
        """The columns that the templates name, without {name}."""
        templates = (self.place, *self.frames.values(), self.video)
        return set(re.findall(r"{(\w+)}", "".join(templates))) - {"name"}

    def layouts(self, home: pathlib.Path) -> list[str]:
        """The layouts whose folder of frames is there."""
        return [
            name for name, frames in self.frames.items() if (home / frames.split("{")[0]).is_dir()
        ]


DATASETS = {
    "s4": Dataset(
        csv="s4_meta_data.csv",
        folders=("Single-source",),
        id_column="name",
        place="{split}/{category}/{name}",
        frames={
            "object224": "s4_data/visual_frames/{split}/{category}/{name}",
            "vct384": "s4_data_384/visual_frames_384/{split}/{category}/{name}",
        },
        video="s4_data/raw_videos/{split}/{category}/{name}.mp4",
    ),
    "ms3": Dataset(
        csv="ms3_meta_data.csv",
        folders=("Multi-sources",),
        id_column="",
        place="{split}/{name}",
        frames={
            "object224": "ms3_data/visual_frames/{name}",
            "vct384": "ms3_data_384/visual_frames_384/{name}",
        },
        video="ms3_data/raw_videos/{name}.mp4",
    ),
    "avss": Dataset(
        csv="metadata.csv",
        folders=("AVSBench_semantic", "AVSBench-semantic"),
        id_column="uid",
        place="{split}/{name}",
        frames={"original": "{label}/{name}/frames"},
        video="",
        side=384,
    ),
}


class Clip(NamedTuple):
    """One clip.

    Attributes:
      name: of the clip.
      place: of its flow files, below the dataset's flow root.
      frames: folder of its frames. video: its raw video, which need not be there; None where the
        dataset has none.
    """

    name: str
    place: pathlib.PurePosixPath
    frames: pathlib.Path
    video: pathlib.Path | None


def list_clips(dataset: str, root: str | os.PathLike, layout: str = "") -> list[Clip]:
    """The clips of a dataset's csv, in its order.

    Args:
      layout: one of the dataset's; "" where the folder holds one of them only.

    Raises:
      FlowError: the folder does not hold the dataset, or both layouts; a name that is no file's.
    """
    spec, root = DATASETS[dataset], pathlib.Path(root).expanduser().absolute()
    homes = [root, *(root / folder for folder in spec.folders)]
    home = next((path for path in homes if (path / spec.csv).is_file()), None)
    if home is None:
        raise FlowError(f"{spec.csv} not found in {' and '.join(map(str, homes))}")
    present = spec.layouts(home)
    if layout and layout not in present:
        raise FlowError(f"--layout={layout}: not below {home}; there are {present}")
    if not layout and len(present) != 1:
        raise FlowError(f"{home} holds the layouts {present}: choose one with --layout")
    frames, columns = spec.frames[layout or present[0]], sorted(spec.columns())
    clips = []
    with open(home / spec.csv, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        header = reader.fieldnames or [""]
        id_column = spec.id_column or header[0]
        missing = {id_column, *columns} - set(header)
        if missing:
            raise FlowError(f"{home / spec.csv}: no column {sorted(missing)}")
        for row in reader:
            named = {key: (row[key] or "").strip() for key in (id_column, *columns)}
            for key, value in named.items():
                if value in ("", ".", "..") or re.search(r"[/\\\0]", value):
                    raise FlowError(
                        f"{home / spec.csv}, line {reader.line_num}: {key} {value!r} cannot be a "
                        "file's"
                    )
            named["name"] = named[id_column]
            place = pathlib.PurePosixPath(spec.place.format_map(named))
            video = home / spec.video.format_map(named) if spec.video else None
            clips.append(Clip(named["name"], place, home / frames.format_map(named), video))
    return clips


def frame_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The frames of a clip: NAME_1.png, NAME_2.png, ... or 0.jpg, 1.jpg, ...

    Raises:
      FlowError: there are none, or numbers are missing.
    """
    numbered = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        match = re.fullmatch(r"(.*_)?(\d+)\.(png|jpg)", path.name)
        if match:
            numbered[int(match[2])] = path
    first = min(numbered, default=1)
    if not numbered or first > 1 or sorted(numbered) != [*range(first, first + len(numbered))]:
        raise FlowError(f"{folder}: frames {sorted(numbered)}, expected 1, 2, ... or 0, 1, ...")
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
