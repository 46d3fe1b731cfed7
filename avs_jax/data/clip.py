"""Rows of clips: a record becomes a row of a batch (decode, augment, log-mel, motion, targets).

A record is one raw clip, as stored by the TFDS builders or made from a video by prediction:

  clip_id str        category str      category_label int (1-based)
  frames             T images: encoded bytes or uint8 [H, W, 3]
  masks, mask_index  n label images (encoded bytes or uint8 [H, W]), and their frames, int [n]
  pre_masks          T pre-masks, class-agnostic color masks like frames, or none
  waveform           int16 [n] or [n, channels], with sample_rate in Hz
  flow               float [T, H, W, 2] (u, v) or [T, H, W, 1] (magnitude), or empty
  flow_has_first     whether flow[0] is a real flow; absent: inferred from its values
  motion_track       float [N, 24, 24, C], motion_track_rate per second (motion_track.py), or empty;
                     may be absent
  object_masks       T label images that name objects (1 sounds, 2 is its silent look-alike), or
                     none; may be absent
  sound_is_false     only in training: the sound is not that of the clip's category
  motion             only in controls of an evaluation: maps float32 [n, H, W, C] from
                     `motion_maps` that replace the clip's own, repeated over T

Source: VCT's data mappers. One class serves S4, MS3 and AVSS, which differ in configuration
(num_frames, num_supervised, prototype_target, short_audio, square_first) and in their records.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from avs_jax.data import motion, synchrony, transforms
from avs_jax.data.audio import log_mel
from avs_jax.data.decode import decode_labels, decode_rgb, decode_text
from avs_jax.data.record_fields import check_record
from avs_jax.spec import (
    IGNORE_LABEL,
    MEL_BANDS,
    MEL_FRAMES,
    SOUND_BANDS,
    TRACK_CELLS,
    Field,
    InputError,
)
from avs_jax.task import Record, Row, empty_row

CHOICES = {  # key of config.data -> allowed values
    "train_frames": ("supervised", "all"),
    "supervised_choice": ("first", "random"),
    "prototype_target": ("category", "classes", "none"),
}

# S: config.evaluate.score_size; K': config.data.num_prototypes.
FIELDS = {
    "images": Field("uint8", "B T H W 3", "input", "RGB 0..255, not normalized"),
    "log_mel": Field(
        "float32", f"B T {MEL_FRAMES} {MEL_BANDS}", "input", "VGGish log-mel (time, band), raw"
    ),
    "pre_masks": Field(
        "uint8", "B T H W 3", "input", "class-agnostic color masks", given="optional"
    ),
    "motion": Field(
        "float32", "B T H W C", "input", "motion map: strength, or (u, v)", given="optional"
    ),
    "motion_track": Field(
        "float16",
        f"B T U {TRACK_CELLS} {TRACK_CELLS} 2",
        "input",
        "motion around the frame's second, see data/synchrony.py",
        given="optional",
    ),
    "sound_track": Field(
        "float32",
        f"B T U {2 * SOUND_BANDS}",
        "input",
        "energy and rise of the sound in the same samples",
        given="optional",
    ),
    "valid": Field("bool", "B T", "input", "the frame exists; False pads", given="optional"),
    "frame_index": Field("int32", "B T", "input", "place of the frame in its clip", given="never"),
    "supervised": Field("bool", "B T", "target", "the frame has ground truth to read"),
    "target_masks": Field(
        "bool",
        "B T M H W",
        "target",
        "a mask per class present, background included; padding is in none",
        "train",
    ),
    "target_labels": Field("int32", "B T M", "target", "class of each mask", "train"),
    "target_valid": Field("bool", "B T M", "target", "the mask exists", "train"),
    "proto_target": Field(
        "float32", "B T K'", "target", "one-hot category, or the classes present", "train"
    ),
    "proto_valid": Field("bool", "B T", "target", "the prototype loss reads the frame", "train"),
    "labels": Field(
        "uint8",
        "B T S S",
        "target",
        "class of each pixel, 255 where unknown",
        "evaluate",
        IGNORE_LABEL,
    ),
    "moving": Field("bool", "B T S S", "target", "the pixel moves", "evaluate"),
    "objects": Field(
        "uint8",
        "B T S S",
        "target",
        "1 the object that sounds, 2 its silent look-alike, 255 where a clip does not name them",
        "evaluate",
        IGNORE_LABEL,
    ),
    "clip_id": Field("str", "B", "metadata", "name of the clip", "evaluate"),
    "category": Field("str", "B", "metadata", "category of the clip", "evaluate"),
}


class ClipRows:
    """Rows of clips under one configuration.

    Attributes:
      fields: of a batch: FIELDS without those that the configuration turns off.
      sizes: of the fields' axes, in evaluation.
    """

    def __init__(self, config: Any):
        data = self._data = config.data.copy_and_resolve_references()
        _check_data(data)
        self._own_motion = data.motion  # of `motion_maps`
        if data.motion.source == "none":
            self._own_motion = data.motion.copy_and_resolve_references()
            self._own_motion.source = "auto"
        evaluate = config.evaluate
        # None where there are no false sounds: only their report counts moving pixels.
        self._threshold = evaluate.moving_threshold if "audio" in evaluate else None
        off = set()
        if not data.pre_masks:
            off.add("pre_masks")
        if data.motion.source == "none":
            off.add("motion")
        self._has_track = "track" in data and data.track.source != "none"
        if not self._has_track:
            off |= {"motion_track", "sound_track"}
        if not evaluate.get("audio"):
            off.add("moving")
        self.fields: Mapping[str, Field] = {k: v for k, v in FIELDS.items() if k not in off}
        self.sizes: Mapping[str, int] = {
            "T": data.num_frames,
            "H": data.image_size,
            "W": data.image_size,
            "C": motion.num_channels(data.motion),
            "M": data.max_targets,
            "K'": data.num_prototypes,
            "S": evaluate.score_size,
            "U": synchrony.num_samples(data.track) if self._has_track else 0,
        }

    def empty(self, train: bool) -> Row:
        frames = self._data.num_frames
        if train and self._data.train_frames == "supervised":
            frames = self._data.num_supervised
        return empty_row(self.fields, {**self.sizes, "T": frames}, train)

    def prepare(self, record: Record, rng: np.random.Generator | None = None) -> Row:
        """One record as one row.

        Args:
          record: see above.
          rng: for training: augments and adds the target_* and proto_* fields. None: the whole
            clip, resized to a square of data.image_size, with `labels` at the score size.

        Returns:
          T = data.num_frames frames, or data.num_supervised in training with data.train_frames =
          "supervised"; padding frames have valid False.

        Raises:
          InputError: naming the clip, the problem and the configuration key, if one is to blame.
        """
        try:
            check_record(record)
            return self._prepare(record, rng)
        except (ValueError, OSError) as error:
            kind = InputError if isinstance(error, (InputError, OSError)) else ValueError
            raise kind(f"clip {_name(record)}: {error}") from error

    def prepare_labels(self, record: Record) -> Row:
        """Only the ground truth of `prepare` in evaluation.

        Returns:
          labels, objects, valid, supervised, frame_index, clip_id and category.
        """
        empty = self.empty(train=False)
        names = ("labels", "objects", "valid", "supervised", "frame_index")
        row = {name: empty[name] for name in names}
        try:
            check_record(record)
            num_frames = _count_frames(record, self._data)
            row["valid"][:num_frames] = True
            row["frame_index"][:num_frames] = np.arange(num_frames)
            for t, mask in _masks_by_frame(record, num_frames).items():
                row["supervised"][t] = True
                self._write_labels(row, t, decode_labels(mask, self._data.num_classes), None)
            self._write_objects(row, record, num_frames)
        except (ValueError, OSError) as error:
            raise InputError(f"clip {_name(record)}: {error}") from error
        return row | _metadata_fields(record)

    def motion_maps(self, record: Record) -> np.ndarray:
        """The clip's own motion as in evaluation: float32 [T, H, W, C], without padding frames.

        If the model reads no motion, this is stored flow, else frame difference.
        """
        settings, side = self._own_motion, self._data.image_size
        frame = functools.cache(lambda t: decode_rgb(record["frames"][t]))
        count = len(record["frames"])
        maps = (motion.frame_map(record, frame, t, count, settings) for t in range(count))
        return np.stack(
            [motion.after_augmentation(_resize_motion(m, None, side), settings) for m in maps]
        )

    def _prepare(self, record: Record, rng: np.random.Generator | None) -> Row:
        data, train = self._data, rng is not None
        num_frames = _count_frames(record, data)
        masks = _masks_by_frame(record, num_frames)
        if train:
            masks = {t: masks[t] for t in _choose_supervised(sorted(masks), data, rng)}
        if data.pre_masks:
            _check_pre_masks(record, num_frames)
        row = self.empty(train)
        frame = functools.cache(lambda t: decode_rgb(record["frames"][t]))
        waveform, rate = record["waveform"], int(record["sample_rate"])
        used = sorted(masks) if train and data.train_frames == "supervised" else range(num_frames)
        heard = self._draw_seconds(num_frames, rng)
        seconds = sorted({*used, *heard})
        examples = log_mel(waveform, rate, num_frames, short=data.short_audio, only=seconds)
        mel = dict(zip(seconds, examples, strict=True))
        self._write_clip_sound(row, heard, mel)
        draw = _draw_augmentation(rng, frame(used[0]).shape, data) if train and used else None
        square = transforms.resize_to_square if draw and data.square_first else _keep
        windows = synchrony.Windows(record, data.track, num_frames) if self._has_track else None
        for i, t in enumerate(used):
            if frame(t).shape != frame(used[0]).shape:
                raise InputError(
                    f"frame {t} is {frame(t).shape}, frame {used[0]} {frame(used[0]).shape}"
                )
            row["valid"][i] = True
            row["supervised"][i] = t in masks
            row["frame_index"][i] = t
            row["log_mel"][i] = mel[t]
            image = square(frame(t), transforms.BILINEAR)
            row["images"][i] = _resize_image(image, draw, t, data.image_size)
            if data.pre_masks:
                pre_mask = square(decode_rgb(record["pre_masks"][t]), transforms.NEAREST)
                row["pre_masks"][i] = _resize_pre_mask(pre_mask, draw, t, data.image_size)
            if "motion" in row and "motion" not in record:
                found = motion.frame_map(record, frame, t, num_frames, data.motion)
                resized = _resize_motion(found, draw, data.image_size)
                row["motion"][i] = motion.after_augmentation(resized, data.motion)
            if windows is not None:
                for name, value in windows.of_frame(t, draw).items():
                    row[name][i] = value
            if t in masks:
                labels = square(decode_labels(masks[t], data.num_classes), transforms.NEAREST)
                self._write_labels(row, i, labels, draw)
                if train:
                    self._write_targets(
                        row, i, record, t, functools.partial(_augmented, square, draw)
                    )
            if train:
                _write_prototypes(row, i, record, data)
        if not train:
            row |= _metadata_fields(record)
            self._write_objects(row, record, num_frames)
            if "motion" in row and "motion" in record:
                given = record["motion"]
                row["motion"][:num_frames] = given[np.arange(num_frames) % len(given)]
            if "moving" in row:
                self._write_moving(row, record, num_frames)
        return row

    def _write_labels(self, row: Row, i: int, labels: np.ndarray, draw: Any) -> None:
        """Writes one frame's ground truth, uint8 [H, W], into a row."""
        if "labels" in row:
            side = self.sizes["S"]
            row["labels"][i] = transforms.resize(labels, (side, side), transforms.NEAREST)
            return
        labels = transforms.augment_labels(labels, draw)
        classes = [c for c in np.unique(labels) if c != IGNORE_LABEL]
        if len(classes) > self._data.max_targets:
            raise InputError(
                f"classes {[int(c) for c in classes]} in one frame, more than "
                f"config.data.max_targets = {self._data.max_targets}"
            )
        for target, label in enumerate(classes):
            row["target_masks"][i, target] = labels == label
            row["target_labels"][i, target] = label
            row["target_valid"][i, target] = True

    def _draw_seconds(self, num_frames: int, rng: np.random.Generator | None) -> Sequence[int]:
        """Seconds whose sound a task reads besides that of the row's frames, in order."""
        return ()

    def _write_clip_sound(
        self, row: Row, seconds: Sequence[int], mel: Mapping[int, np.ndarray]
    ) -> None:
        """Writes the sound of these seconds; mel has [96, 64] of each."""

    def _write_targets(
        self,
        row: Row,
        i: int,
        record: Record,
        t: int,
        augmented: Callable[[np.ndarray], np.ndarray],
    ) -> None:
        """What a task also reads in training from frame t, which is row i.

        `augmented` does to labels uint8 [H, W] what was done to the frame: [S, S], 255 outside.
        """

    def _write_objects(self, row: Row, record: Record, num_frames: int) -> None:
        """Writes the object masks, if the clip has them."""
        masks, side = record.get("object_masks", ()), self.sizes["S"]
        if len(masks) not in (0, num_frames):
            raise InputError(f"{len(masks)} object masks for {num_frames} frames")
        for t, mask in enumerate(masks):
            labels = decode_labels(mask, IGNORE_LABEL)
            row["objects"][t] = transforms.resize(labels, (side, side), transforms.NEAREST)

    def _write_moving(self, row: Row, record: Record, num_frames: int) -> None:
        """Writes which pixels move by the clip's own motion, even if the model gets another."""
        has_own = "motion" in row and "motion" not in record
        own = row["motion"][:num_frames] if has_own else self.motion_maps(record)
        size = self.sizes["S"]
        row["moving"][:num_frames] = [
            motion.moving_pixels(found, size, self._threshold) for found in own
        ]


def _augmented(square: Callable, draw: Any, labels: np.ndarray) -> np.ndarray:
    return transforms.augment_labels(square(labels, transforms.NEAREST), draw)


def _check_data(data: Any) -> None:
    for key, choices in CHOICES.items():
        value = data.get(key)
        if value not in choices:
            raise InputError(f"config.data.{key} is {value!r}, expected one of {choices}")
    if data.prototype_target == "classes" and data.num_prototypes != data.num_classes:
        raise InputError(
            f"config.data.num_prototypes = {data.num_prototypes} and config.data.num_classes = "
            f"{data.num_classes} must be equal where prototype_target is 'classes'"
        )
    motion.check_config(data.motion)
    if "track" in data:  # configurations of older runs have none
        synchrony.check_config(data.track)


def _name(record: Record) -> str:
    clip_id = record.get("clip_id", "?")
    return repr(clip_id)[:100] if not isinstance(clip_id, (str, bytes)) else decode_text(clip_id)


def _metadata_fields(record: Record) -> dict[str, str]:
    return {name: decode_text(record.get(name, "")) for name in ("clip_id", "category")}


def _count_frames(record: Record, data: Any) -> int:
    count = len(record["frames"])
    if not 0 < count <= data.num_frames:
        raise InputError(
            f"{count} frames, expected 1 to config.data.num_frames = {data.num_frames}"
        )
    return count


def _check_pre_masks(record: Record, num_frames: int) -> None:
    if len(record["pre_masks"]) != num_frames:
        raise InputError(
            f"{len(record['pre_masks'])} pre-masks for {num_frames} frames, but "
            "config.data.pre_masks is True: build the dataset from a folder with pre-masks (one "
            "*_mask_color.png per frame), or train without them: --config.data.pre_masks=False"
        )


def _draw_augmentation(rng: np.random.Generator, shape: tuple[int, ...], data: Any) -> Any:
    """One draw for all frames of a clip with frames of this shape."""
    size = (min(shape[:2]),) * 2 if data.square_first else shape[:2]
    return transforms.draw_augmentation(rng, size, data.num_frames, data.image_size, **data.augment)


def _masks_by_frame(record: Record, num_frames: int) -> dict[int, Any]:
    index = [int(t) for t in record["mask_index"]]
    if len(index) != len(record["masks"]) or len(set(index)) != len(index):
        raise InputError(f"{len(record['masks'])} masks for the frames {index}")
    if any(not 0 <= t < num_frames for t in index):
        raise InputError(f"masks for the frames {index} of a clip of {num_frames} frames")
    return dict(zip(index, record["masks"], strict=True))


def _choose_supervised(frames: list[int], data: Any, rng: np.random.Generator) -> list[int]:
    """At most data.num_supervised of the frames, in order; draws only if there are more."""
    if len(frames) <= data.num_supervised:
        return frames
    if data.supervised_choice == "first":
        return frames[: data.num_supervised]
    return sorted(rng.choice(frames, data.num_supervised, replace=False).tolist())


def _category_index(record: Record, num_prototypes: int) -> int:
    label = int(record["category_label"])
    if not 1 <= label <= num_prototypes:
        raise InputError(
            f"category_label is {label}, expected 1 to "
            f"config.data.num_prototypes = {num_prototypes}"
        )
    return label - 1


def _keep(image: np.ndarray, resample: Image.Resampling) -> np.ndarray:
    return image


def _resize_image(image: np.ndarray, draw: Any, t: int, side: int) -> np.ndarray:
    if draw is None:
        return transforms.resize(image, (side, side), transforms.BILINEAR)
    return transforms.augment_image(image, draw, draw.image_jitter[t])


def _resize_pre_mask(image: np.ndarray, draw: Any, t: int, side: int) -> np.ndarray:
    if draw is None:  # nearest keeps the palette's colors
        return transforms.resize(image, (side, side), transforms.NEAREST)
    return transforms.augment_image(image, draw, draw.pre_mask_jitter[t])


def _resize_motion(found: np.ndarray, draw: Any, side: int) -> np.ndarray:
    if draw is None:
        return transforms.resize_motion(found, (side, side))
    return transforms.augment_motion(found, draw)


def _write_prototypes(row: Row, i: int, record: Record, data: Any) -> None:
    """Writes a frame's target of the prototype loss, after its other targets."""
    names_sound = data.prototype_target == "category" and not record.get("sound_is_false", False)
    if names_sound and row["frame_index"][i] == 0:
        row["proto_target"][i, _category_index(record, data.num_prototypes)] = 1.0
        row["proto_valid"][i] = True
    if data.prototype_target == "classes" and row["supervised"][i]:
        present = row["target_labels"][i][row["target_valid"][i]]
        row["proto_target"][i, present] = 1.0
        row["proto_valid"][i] = True
