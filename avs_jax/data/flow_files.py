"""Stored flow: FLOW_ROOT/SETTING/.../flow_{t:04d}.npy, and the clips that it is made for.

Motion tracks lie in such folders too, as track.npy (motion_track.py).

A file holds [H, W] (magnitude) or [H, W, 2] ((u, v) in px of the frames it was made from). We write
float16. `flow.json` beside the splits' folders says how the files were made.
"""

import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from avs_jax.array_files import parse_npy
from avs_jax.data.avsbench_csv import read_rows
from avs_jax.data.avsbench_folders import SETTINGS, SPLITS, DatasetLayoutError, Setting
from avs_jax.data.input_files import read_bytes, read_json
from avs_jax.files import atomic_file
from avs_jax.spec import InputError

SETTINGS_FILE = "flow.json"
LARGEST = 65_000  # px; float16 ends there


class FlowError(InputError):
    """A folder that is not the dataset's, or an output that is another run's; one line."""


class FlowClip(NamedTuple):
    """One clip.

    Attributes:
      name: of the clip.
      folder: of its flow files, below the dataset's flow root.
      frames: folder of its frames.
      video: its raw video, which need not exist; None where the dataset has none.
    """

    name: str
    folder: pathlib.PurePosixPath
    frames: pathlib.Path
    video: pathlib.Path | None


def list_clips(dataset: str, root: str | os.PathLike, layout: str = "") -> list[FlowClip]:
    """The clips of a setting's csv, in its order.

    Args:
      layout: one of the setting's; "" where the folder holds one of them only.

    Raises:
      InputError: the folder does not hold the dataset, or holds several layouts; a row that is no
        clip.
    """
    setting = SETTINGS[dataset]
    home = setting.find_root(root)
    present = [x.name for x in setting.layouts_present(home)]
    if layout and layout not in present:
        raise FlowError(f"--layout={layout}: not below {home}; there are {present}")
    # Where all frames are squashed to one size, the layouts' frames do not differ.
    if not layout and (not present or len(present) > 1 and setting.flow_side is None):
        raise FlowError(f"{home} holds the layouts {present}: choose one with --layout")
    frames = setting.layout(layout or present[0]).frames
    rows, problems = read_rows(setting, home, any_category=True)
    if problems:
        raise FlowError(problems[0])
    return [
        FlowClip(
            row.name,
            pathlib.PurePosixPath(row.path(pathlib.Path(), setting.flow)),
            row.path(home, frames[row.split]).parent,
            row.path(home, setting.video) if setting.video else None,
        )
        for row in rows
    ]


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


# ---- the folder of a dataset's flow ----


def find_flow_root(setting: Setting, flow_dir: pathlib.Path) -> pathlib.Path:
    """The folder that holds the splits' flow: {flow_dir}/{setting}, or flow_dir itself.

    Raises:
      DatasetLayoutError: neither does.
    """
    folders = (flow_dir / setting.name, flow_dir)
    for folder in folders:
        if any((folder / split).is_dir() for split in SPLITS):
            return folder
    raise DatasetLayoutError(
        f"no flow found: looked for {{{','.join(SPLITS)}}} in {folders[0]} and {folders[1]}"
    )


def read_settings(root: pathlib.Path) -> dict[str, Any]:
    """How the flow below `root` was made; {} where nobody noted it."""
    path = root / SETTINGS_FILE
    return read_json(path) if path.exists() else {}


def has_first_flow(settings: Mapping[str, Any]) -> bool | None:
    """Whether file 0 of a clip holds a flow of its own, not zeros; None where nothing says so."""
    return {"video": True, "frames": False}.get(settings.get("source"))


def track_rate(root: pathlib.Path) -> float:
    """Samples per second of the motion tracks below `root`.

    Raises:
      InputError: its flow.json names none.
    """
    rate = read_settings(root).get("rate")
    if not isinstance(rate, (int, float)) or not rate > 0:
        raise InputError(
            f"{root / SETTINGS_FILE}: rate {rate!r}, expected the samples per second of motion "
            "tracks (avs-jax flow --source=track)"
        )
    return float(rate)


# ---- one file ----


def is_whole(path: pathlib.Path, shape: tuple[int, ...]) -> bool:
    """Whether a file holds finite float16 flow of that shape."""
    try:
        found = _parse(path)
    except InputError:
        return False
    return (found.shape, found.dtype) == (shape, np.dtype(np.float16))


def read_array(path: pathlib.Path) -> np.ndarray:
    """Flow of one frame, float16 [H, W, 1] (magnitude) or [H, W, 2].

    Raises:
      InputError: the file is missing, damaged, or holds anything but finite flow.
    """
    flow = _parse(path)
    return flow.astype(np.float16).reshape(*flow.shape[:2], -1)


def _parse(path: pathlib.Path) -> np.ndarray:
    """The array of a file as it is: floating point [H, W], [H, W, 1] or [H, W, 2], finite."""
    data = read_bytes(path)
    try:
        flow = parse_npy(data)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if flow.ndim not in (2, 3) or flow.shape[2:] not in ((), (1,), (2,)) or 0 in flow.shape:
        raise InputError(f"{path}: shape {flow.shape}, expected [H, W] or [H, W, 2]")
    if flow.dtype.kind != "f":
        raise InputError(f"{path}: {flow.dtype} numbers, expected floating point")
    if not np.all(np.abs(flow) < LARGEST):  # also where it is not a number
        raise InputError(f"{path}: {flow.dtype} flow that is not finite or beyond float16")
    return flow


def write_array(path: pathlib.Path, array: np.ndarray) -> None:
    """Writes an array as float16; the name appears when the file is complete.

    Raises:
      FlowError: a number that float16 does not hold.
    """
    if not np.all(np.abs(array) < LARGEST):  # also where it is not a number
        raise FlowError(f"{path}: flow that is not finite or beyond {LARGEST} px")
    with atomic_file(path, 2 * array.size) as file:
        np.lib.format.write_array(file, np.ascontiguousarray(array, np.float16), version=(1, 0))
