"""The files of a clip, read strictly into a record; all that is wrong with them is listed."""

import concurrent.futures
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from avs_jax.data.decode import decode_labels
from avs_jax.data.flow_files import read_array
from avs_jax.data.input_files import read_image, read_wav
from avs_jax.data.motion_track import TRACK_FILE, read_track
from avs_jax.progress import tracked
from avs_jax.spec import InputError
from tfds_builders.features import record_features
from tfds_builders.shards import Source


class DatasetFilesError(InputError):
    """Files of a dataset are missing or damaged.

    Attributes:
      problems: every one of them, as one line each.
      num_good: clips without a problem.
    """

    def __init__(
        self,
        problems: Sequence[str],
        num_good: int,
        num_bad: int,
        kept: pathlib.Path | None = None,
    ):
        """`kept`: folder of the good clips' records."""
        self.problems, self.num_good = list(problems), num_good
        super().__init__(
            f"{len(self.problems)} missing or damaged files in {num_bad} clips "
            f"({num_good} clips are good):\n  "
            + "\n  ".join(self.problems)
            + "\nRestore them, or leave these clips out with --skip_bad."
            + (f"\nThe good clips wait in {kept} for the next attempt." if kept else "")
        )


@dataclasses.dataclass(frozen=True)
class ClipFiles:
    """Where the files of one clip should be.

    Attributes:
      masks: frame -> its mask.
      flow_dir: folder of its stored flow, which need not exist; None where flow is not asked for.
      flow_has_first: whether its file 0 holds a flow of its own; None: whether it is not zero.
      track_dir: folder of its motion track, which need not exist; None where none is asked for.
      track_rate: samples of the track per second.
      visible_labels: of all categories in its frames, where known.
      object_masks: a mask of single objects per frame, or none.
      mask_sizes: the (width, height) a mask may have besides that of its frame.
      num_classes: 2 where masks are 0 and not 0, else they are indices below it.
    """

    clip_id: str
    category: str
    label: int
    frames: tuple[pathlib.Path, ...]
    masks: dict[int, pathlib.Path]
    pre_masks: tuple[pathlib.Path, ...]
    wav: pathlib.Path
    flow_dir: pathlib.Path | None
    flow_has_first: bool | None = None
    track_dir: pathlib.Path | None = None
    track_rate: float = 0.0
    visible_labels: tuple[int, ...] = ()
    object_masks: tuple[pathlib.Path, ...] = ()
    mask_sizes: tuple[tuple[int, int], ...] = ()
    num_classes: int = 2

    @property
    def files(self) -> list[pathlib.Path]:
        """All that the record is made from."""
        flow = sorted(self.flow_dir.glob("*.npy")) if self.flow_dir is not None else []
        flow += [self.track] if self.track is not None else []
        images = [*self.frames, *self.masks.values(), *self.pre_masks, *self.object_masks]
        return [*images, self.wav, *flow]

    @property
    def track(self) -> pathlib.Path | None:
        """The file of its motion track; None where there is none."""
        path = self.track_dir and self.track_dir / TRACK_FILE
        return path if path is not None and path.exists() else None

    def read(self) -> tuple[dict[str, Any], list[str]]:
        """`read_clip`."""
        return read_clip(self)

    @staticmethod
    def features() -> tfds.features.FeaturesDict:
        """The features of the record."""
        return record_features()


def read_flow(folder: pathlib.Path | None, num_frames: int) -> tuple[np.ndarray, str]:
    """Stored flow of a clip.

    Returns:
      (float16 [T, H, W, C], kind), or ([0, 0, 0, 0], "none") where the folder is None or absent.

    Raises:
      InputError: some frames have no file, or a file is damaged, not finite or unlike the others.
    """
    if folder is None or not folder.is_dir():
        return np.zeros((0, 0, 0, 0), np.float16), "none"
    maps = []
    for t in range(num_frames):
        path = folder / f"flow_{t:04d}.npy"
        maps.append(read_array(path))
        if maps[t].shape != maps[0].shape:
            raise InputError(f"{path}: shape {maps[t].shape}, expected {maps[0].shape} of frame 0")
    stacked = np.stack(maps)
    return stacked, "uv" if stacked.shape[-1] == 2 else "magnitude"


def read_labels(path: pathlib.Path, num_classes: int) -> np.ndarray:
    """A mask as uint8 [H, W] of classes.

    Raises:
      InputError: the file is missing or damaged, or holds other classes.
    """
    return _decode_labels(path, read_image(path)[0], num_classes)


def _decode_labels(path: pathlib.Path, data: bytes, num_classes: int) -> np.ndarray:
    try:
        return decode_labels(data, num_classes)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


class _ClipReader:
    """Reads the files of one clip and notes everything that is wrong with them.

    Attributes:
      problems: a line per damaged or missing file.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._frame_size: tuple[int, int] | None = None  # (width, height)

    def attempt(self, read: Callable, *args: Any) -> Any:
        """What `read` returns, None where it raises an InputError."""
        try:
            return read(*args)
        except InputError as error:
            self.problems.append(str(error))
            return None

    def images(
        self, paths: Sequence[pathlib.Path], more_sizes: Sequence[tuple[int, int]] = ()
    ) -> list[bytes]:
        """The files' bytes, b"" where unreadable.

        All must have the size of the first image that can be read, or one of `more_sizes`.
        """
        contents = []
        for path in paths:
            data, image = self.attempt(read_image, path) or (b"", None)
            contents.append(data)
            if image is None:
                continue
            self._frame_size = self._frame_size or image.size
            sizes = (self._frame_size, *more_sizes)
            if image.size not in sizes:
                expected = " or ".join(f"{w}x{h}" for w, h in sizes)
                found = f"{image.width}x{image.height}"
                self.problems.append(f"{path}: {found} px, expected {expected}")
        return contents


def read_clip(clip: ClipFiles) -> tuple[dict[str, Any], list[str]]:
    """The record of a clip, and what is wrong with its files; use it only if nothing is."""
    folder = clip.frames[0].parent
    if not folder.is_dir():
        return {}, [f"{folder}: no such folder, but {clip.clip_id} is listed"]
    reader = _ClipReader()
    frames = reader.images(clip.frames)
    masks = reader.images(tuple(clip.masks.values()), clip.mask_sizes)
    for path, data in zip(clip.masks.values(), masks, strict=True):
        if data:
            reader.attempt(_decode_labels, path, data, clip.num_classes)
    pre_masks = reader.images(clip.pre_masks)
    object_masks = reader.images(clip.object_masks)
    waveform, rate = reader.attempt(read_wav, clip.wav) or (None, 0)
    flow, kind = reader.attempt(read_flow, clip.flow_dir, len(clip.frames)) or (None, "none")
    has_first = kind != "none" and clip.flow_has_first
    if has_first is None:
        has_first = bool(np.any(flow[0]))
    track = np.zeros((0, 0, 0, 0), np.float16)
    if clip.track is not None:
        track = reader.attempt(read_track, clip.track)
    record = {
        "clip_id": clip.clip_id,
        "category": clip.category,
        "category_label": np.int32(clip.label),
        "frames": frames,
        "masks": masks,
        "mask_index": np.array(list(clip.masks), np.int32),
        "pre_masks": pre_masks,
        "waveform": waveform,
        "sample_rate": np.int32(rate),
        "flow": flow,
        "flow_kind": kind,
        "flow_has_first": np.bool_(has_first),
        "motion_track": track,
        "motion_track_rate": np.float32(clip.track_rate if clip.track is not None else 0),
        "visible_labels": np.array(clip.visible_labels, np.int32),
        "object_masks": object_masks,
    }
    return record, reader.problems


def read_all(
    clips: Sequence[Source], look: Callable[[dict[str, Any]], Any], workers: int | None = None
) -> Iterator[tuple[Source, Any, list[str]]]:
    """Reads and decodes every file of every clip, in threads, with progress, in order.

    Yields:
      (clip, look(record), what is wrong with its files); look sees what could be read, {} where
      nothing could.
    """
    workers = workers or min(16, os.cpu_count() or 1)

    def read(clip: Source) -> tuple[Source, Any, list[str]]:
        record, problems = clip.read()
        return clip, look(record), problems

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        outcomes = pool.map(read, clips)
        yield from tracked(outcomes, "checking files", len(clips), "clip")
