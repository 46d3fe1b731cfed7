"""What all dataset builders share: the record's features, strict reading, a list of all faults.

A record is one clip, raw: images stay encoded, so that a reader decodes only the frames it needs.

  clip_id         Text
  category        Text
  category_label  int32              1-based; 0 where a dataset gives clips no single category
  frames          list of bytes      one encoded image per frame that exists
  masks           list of bytes      encoded PNG: 0 and not 0, or class indices
  mask_index      int32 [n]          the frames, from 0, that the masks belong to
  pre_masks       list of bytes      encoded class-agnostic colour masks, one per frame, or none
  waveform        int16 [n, channels]
  sample_rate     int32              Hz
  flow            float16 [T, H, W, 2] (u, v in px), [T, H, W, 1] (magnitude), or [0, 0, 0, 0]
  flow_kind       Text               "uv", "magnitude" or "none"
  visible_labels  int32 [n]          all categories in the picture, where known (generated clips)

All of it reads back without TensorFlow through `builder.as_data_source(split)`. (Flow is zlib-coded
not only for its size: TFDS 4.9.10 cannot read back an empty array of unknown shape in its other
encodings.)
"""

import concurrent.futures
import dataclasses
import io
import os
import pathlib
import re
import wave
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from PIL import Image

from avs_jax.data.clip import decode_labels

MIN_SAMPLES_16K = 15_600  # one log-mel example at 16 kHz


class DatasetInfo(tfds.core.DatasetInfo):
    """Local metadata only: asking for published ones leaves an empty temporary folder each time."""

    def initialize_from_bucket(self) -> None:
        """Nothing is published, so there is nothing to fetch."""


class DatasetFilesError(ValueError):
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
        """`kept`: folder of what is good already."""
        self.problems, self.num_good = list(problems), num_good
        super().__init__(
            f"{len(self.problems)} missing or damaged files in {num_bad} clips "
            f"({num_good} clips are good):\n  "
            + "\n  ".join(self.problems)
            + "\nRestore them, or leave these clips out with --skip-bad."
            + (f"\nThe good clips wait in {kept} for the next attempt." if kept else "")
        )


class DatasetLayoutError(FileNotFoundError):
    """The folder given as manual_dir is absent or is not laid out as the dataset is."""


@dataclasses.dataclass(frozen=True)
class ClipFiles:
    """Where the files of one clip should be.

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
    visible_labels: tuple[int, ...] = ()
    mask_sizes: tuple[tuple[int, int], ...] = ()
    num_classes: int = 2


def record_features() -> tfds.features.FeaturesDict:
    """The features of a record, as listed at the top of this file."""
    features = tfds.features
    return features.FeaturesDict(
        {
            "clip_id": features.Text(),
            "category": features.Text(),
            "category_label": np.int32,
            "frames": features.Sequence(features.Tensor(shape=(), dtype=np.object_)),
            "masks": features.Sequence(features.Tensor(shape=(), dtype=np.object_)),
            "mask_index": features.Tensor(shape=(None,), dtype=np.int32),
            "pre_masks": features.Sequence(features.Tensor(shape=(), dtype=np.object_)),
            "waveform": features.Tensor(shape=(None, None), dtype=np.int16, encoding="bytes"),
            "sample_rate": np.int32,
            "flow": features.Tensor(shape=(None,) * 4, dtype=np.float16, encoding="zlib"),
            "flow_kind": features.Text(),
            "visible_labels": features.Tensor(shape=(None,), dtype=np.int32),
        }
    )


def read_image(path: pathlib.Path) -> tuple[bytes, tuple[int, int]]:
    """Bytes and (width, height) of an image whose every pixel can be decoded.

    Raises:
      ValueError: the file is missing or cannot be decoded to the end; says which and why.
    """
    data = _read_bytes(path)
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return data, image.size
    # Pillow answers damaged files with many kinds of exceptions.
    except Exception as error:
        raise ValueError(f"{path}: unreadable image ({error})") from error


def read_wav(path: pathlib.Path) -> tuple[np.ndarray, int]:
    """Waveform int16 [n, channels] and sampling rate of a 16-bit PCM WAV file.

    Raises:
      ValueError: missing, not 16-bit PCM, shorter than its header says or than one log-mel example.
    """
    data = _read_bytes(path)
    try:
        with wave.open(io.BytesIO(data)) as file:
            channels, width, rate, count = file.getparams()[:4]
            samples = file.readframes(count)
    except (wave.Error, EOFError) as error:
        raise ValueError(f"{path}: unreadable wav ({str(error) or 'empty'})") from error
    if width != 2:
        raise ValueError(f"{path}: {8 * width}-bit samples, expected 16-bit PCM")
    if len(samples) != 2 * channels * count:
        held = len(samples) // (2 * channels)
        raise ValueError(f"{path}: truncated wav, {held} of {count} samples")
    if count * 16_000 < MIN_SAMPLES_16K * rate:
        raise ValueError(
            f"{path}: {count / rate:.3f} s of sound, less than one log-mel example (0.975 s)"
        )
    return np.frombuffer(samples, "<i2").astype(np.int16).reshape(count, channels), rate


def read_flow(folder: pathlib.Path | None, num_frames: int) -> tuple[np.ndarray, str]:
    """Stored flow of a clip: files flow_{t:04d}.npy, [H, W] (magnitude) or [H, W, 2] (u, v in px).

    Returns:
      (float16 [T, H, W, C], kind), or ([0, 0, 0, 0], "none") where the folder is None or absent.

    Raises:
      ValueError: some frames have no file, or a file is damaged, not finite or unlike the others.
    """
    if folder is None or not folder.is_dir():
        return np.zeros((0, 0, 0, 0), np.float16), "none"
    maps = []
    for t in range(num_frames):
        path = folder / f"flow_{t:04d}.npy"
        data = _read_bytes(path)
        try:
            flow = np.load(io.BytesIO(data), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path}: unreadable array ({error})") from error
        flow = flow[..., None] if flow.ndim == 2 else flow
        if flow.ndim != 3 or flow.shape[-1] not in (1, 2) or (maps and flow.shape != maps[0].shape):
            like = f"{maps[0].shape} of frame 0" if maps else "[H, W] or [H, W, 2]"
            raise ValueError(f"{path}: shape {flow.shape}, expected {like}")
        if not np.issubdtype(flow.dtype, np.floating) or not np.all(np.abs(flow) < 65_000):
            raise ValueError(f"{path}: {flow.dtype} flow that is not finite or beyond float16")
        maps.append(flow.astype(np.float16))
    stacked = np.stack(maps)
    return stacked, "uv" if stacked.shape[-1] == 2 else "magnitude"


def _read_bytes(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"{path}: missing") from error
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from error


def _check_classes(path: pathlib.Path, data: bytes, num_classes: int) -> None:
    try:
        decode_labels(data, num_classes)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


class _ClipReader:
    """Reads the files of one clip and notes all that is wrong with them.

    Attributes:
      problems: a line per damaged or missing file.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._frame_size: tuple[int, int] | None = None  # (width, height)

    def attempt(self, read: Callable, *args: Any) -> Any:
        """What `read` gives, None where it raises a ValueError."""
        try:
            return read(*args)
        except ValueError as error:
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
            data, size = self.attempt(read_image, path) or (b"", None)
            contents.append(data)
            if size is None:
                continue
            self._frame_size = self._frame_size or size
            sizes = (self._frame_size, *more_sizes)
            if size not in sizes:
                expected = " or ".join(f"{w}x{h}" for w, h in sizes)
                self.problems.append(f"{path}: {size[0]}x{size[1]} px, expected {expected}")
        return contents


def read_clip(clip: ClipFiles) -> tuple[dict[str, Any], list[str]]:
    """The record of a clip, and all that is wrong with its files; it counts only if nothing is."""
    folder = clip.frames[0].parent
    if not folder.is_dir():
        return {}, [f"{folder}: no such folder, but {clip.clip_id} is listed"]
    reader = _ClipReader()
    frames = reader.images(clip.frames)
    masks = reader.images(tuple(clip.masks.values()), clip.mask_sizes)
    if clip.num_classes > 2:
        for path, data in zip(clip.masks.values(), masks, strict=True):
            if data:
                reader.attempt(_check_classes, path, data, clip.num_classes)
    pre_masks = reader.images(clip.pre_masks)
    waveform, rate = reader.attempt(read_wav, clip.wav) or (None, 0)
    flow, kind = reader.attempt(read_flow, clip.flow_dir, len(clip.frames)) or (None, "none")
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
        "visible_labels": np.array(clip.visible_labels, np.int32),
    }
    return record, reader.problems


def read_all(
    clips: Sequence[ClipFiles], look: Callable[[dict[str, Any]], Any], workers: int | None = None
) -> Iterator[tuple[ClipFiles, Any, list[str]]]:
    """Reads and decodes every file of every clip, in threads, with progress, in order.

    Yields:
      (clip, look(record), what is wrong with its files); look sees what could be read, {} where
      there is nothing.
    """
    workers = workers or min(16, os.cpu_count() or 1)

    def read(clip: ClipFiles) -> tuple[ClipFiles, Any, list[str]]:
        record, problems = read_clip(clip)
        return clip, look(record), problems

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        outcomes = pool.map(read, clips)
        yield from tqdm.tqdm(outcomes, "Checking files", len(clips), unit="clip")


def safe_name(name: str) -> bool:
    """Whether a name read from a file can stand for one level of a path."""
    return bool(name) and name not in (".", "..") and not re.search(r"[/\\\0]", name)
