"""One record to one row of a batch: decode, augment, log-mel, motion, targets.

A record is one clip, raw, as the TFDS builders store it (or as prediction makes it from a video):

  clip_id str        category str      category_label int (1-based)
  frames             T images: encoded bytes or uint8 [H, W, 3]
  masks, mask_index  n label images (encoded bytes or uint8 [H, W]), and their frames, int [n]
  pre_masks          T colour masks like frames, or none
  waveform           int16 [n] or [n, channels], with sample_rate in Hz
  flow               float [T, H, W, 2] (u, v) or [T, H, W, 1] (magnitude), or empty
  motion_of          only in controls of an evaluation: the record whose motion the clip is given
                     instead of its own (its frames in turn), or None for no motion at all

Source: VCT's data mappers for what a training or test frame is made of. One for S4, MS3 and AVSS:
they differ in configuration (num_frames, num_supervised, prototype_target, short_audio,
square_first) and in what a record holds.
"""

import functools
import io
from typing import Any

import numpy as np
from PIL import Image

from avs_jax.data import motion, transforms
from avs_jax.data.audio import log_mel
from avs_jax.data.records import Record
from avs_jax.spec import HOST_FIELDS, IGNORE_LABEL, MEL_BANDS, MEL_FRAMES, InputError

PROTOTYPE_TARGETS = ("category", "classes", "none")
SUPERVISED_CHOICES = ("first", "random")

Clip = dict[str, Any]


def prepare_clip(record: Record, config: Any, rng: np.random.Generator | None = None) -> Clip:
    """One record as one row of a batch (spec.py, without the axis B).

    Args:
      record: see the text of this file.
      config: the whole configuration; reads `data` and `evaluate.score_size`.
      rng: training: augments and makes the target_* and proto_* fields. None: the whole clip,
        squashed to data.image_size, with `labels` at the score size (255 on frames without ground
        truth), clip_id and category.

    Returns:
      T = data.num_frames frames, or data.num_supervised in training with data.train_frames =
      "supervised"; frames that do not exist have valid False.

    Raises:
      ValueError: naming the clip, what is wrong with it and, where a configuration key is to blame,
      that key.
    """
    try:
        return _prepare_clip(record, config, rng)
    except (ValueError, OSError) as error:
        kind = InputError if isinstance(error, (InputError, OSError)) else ValueError
        raise kind(f"clip {decode_text(record.get('clip_id', '?'))}: {error}") from error


def _prepare_clip(record: Record, config: Any, rng: np.random.Generator | None) -> Clip:
    data, is_training = config.data, rng is not None
    num_frames = _count_frames(record, data)
    masks = _masks_by_frame(record, num_frames)
    if is_training:
        masks = {t: masks[t] for t in _choose_supervised(sorted(masks), data, rng)}
    if data.pre_masks:
        _check_pre_masks(record, num_frames)
    clip = empty_clip(config, is_training)
    frame = functools.cache(lambda t: decode_rgb(record["frames"][t]))
    waveform, rate = record["waveform"], int(record["sample_rate"])
    mel = log_mel(waveform, rate, num_frames, short=data.short_audio)
    used = sorted(masks) if is_training and data.train_frames == "supervised" else range(num_frames)
    draw = _draw_augmentation(rng, frame(used[0]).shape, data) if is_training and used else None
    square = transforms.squash_to_square if draw and data.square_first else _as_it_is
    for row, t in enumerate(used):
        if frame(t).shape != frame(used[0]).shape:
            raise InputError(
                f"frame {t} is {frame(t).shape}, frame {used[0]} {frame(used[0]).shape}"
            )
        clip["valid"][row] = True
        clip["supervised"][row] = t in masks
        clip["frame_index"][row] = t
        clip["log_mel"][row] = mel[t]
        image = square(frame(t), transforms.BILINEAR)
        clip["images"][row] = _place_image(image, draw, t, data.image_size)
        if data.pre_masks:
            pre_mask = square(decode_rgb(record["pre_masks"][t]), transforms.NEAREST)
            clip["pre_masks"][row] = _place_pre_mask(pre_mask, draw, t, data.image_size)
        if data.motion.source != "none" and "motion_of" not in record:
            placed = _place_motion(
                _motion_map(record, frame, t, num_frames, data.motion), draw, data.image_size
            )
            clip["motion"][row] = motion.after_augmentation(placed, data.motion)
        if t in masks:
            labels = square(decode_labels(masks[t], data.num_classes), transforms.NEAREST)
            _place_labels(clip, row, labels, draw, config)
        if is_training:
            _place_prototypes(clip, row, record, data)
    if not is_training:
        clip |= _host_fields(record)
        if record.get("motion_of") is not None:
            given = motion_maps(record["motion_of"], config)
            clip["motion"][:num_frames] = given[np.arange(num_frames) % len(given)]
        if "moving" in clip:
            _place_moving(clip, record, config)
    return clip


def empty_clip(config: Any, is_training: bool) -> Clip:
    """A clip without frames: zeros, valid False, labels 255. It fills up an evaluation batch."""
    data = config.data
    if data.train_frames not in ("supervised", "all"):
        raise InputError(
            f"config.data.train_frames is {data.train_frames!r}, expected 'supervised' or 'all'"
        )
    if data.supervised_choice not in SUPERVISED_CHOICES:
        raise InputError(
            f"config.data.supervised_choice is {data.supervised_choice!r}, "
            f"expected one of {SUPERVISED_CHOICES}"
        )
    if data.prototype_target not in PROTOTYPE_TARGETS:
        raise InputError(
            f"config.data.prototype_target is {data.prototype_target!r}, "
            f"expected one of {PROTOTYPE_TARGETS}"
        )
    if data.prototype_target == "classes" and data.num_prototypes != data.num_classes:
        raise InputError(
            f"config.data.num_prototypes = {data.num_prototypes} and config.data.num_classes = "
            f"{data.num_classes} must be equal where prototype_target is 'classes'"
        )
    motion.check_config(data.motion)
    only_supervised = is_training and data.train_frames == "supervised"
    rows = data.num_supervised if only_supervised else data.num_frames
    side, targets = data.image_size, data.max_targets
    clip: Clip = {
        "images": np.zeros((rows, side, side, 3), np.uint8),
        "log_mel": np.zeros((rows, MEL_FRAMES, MEL_BANDS), np.float32),
        "valid": np.zeros(rows, bool),
        "supervised": np.zeros(rows, bool),
        "frame_index": np.zeros(rows, np.int32),
    }
    if data.pre_masks:
        clip["pre_masks"] = np.zeros((rows, side, side, 3), np.uint8)
    if data.motion.source != "none":
        channels = motion.num_channels(data.motion)
        clip["motion"] = np.zeros((rows, side, side, channels), np.float32)
    if is_training:
        clip["target_masks"] = np.zeros((rows, targets, side, side), bool)
        clip["target_labels"] = np.zeros((rows, targets), np.int32)
        clip["target_valid"] = np.zeros((rows, targets), bool)
        clip["proto_target"] = np.zeros((rows, data.num_prototypes), np.float32)
        clip["proto_valid"] = np.zeros(rows, bool)
    else:
        score = config.evaluate.score_size
        clip["labels"] = np.full((rows, score, score), IGNORE_LABEL, np.uint8)
        if config.evaluate.audio:
            clip["moving"] = np.zeros((rows, score, score), bool)
        clip |= dict.fromkeys(HOST_FIELDS, "")
    return clip


def prepare_labels(record: Record, config: Any) -> Clip:
    """The ground truth of one record, as `prepare_clip` gives it for evaluation, and nothing else.

    Returns:
      labels, valid, supervised, frame_index, clip_id and category.

    Raises:
      ValueError: naming the clip and what is wrong with it.
    """
    empty = empty_clip(config, is_training=False)
    clip = {name: empty[name] for name in ("labels", "valid", "supervised", "frame_index")}
    try:
        num_frames = _count_frames(record, config.data)
        clip["valid"][:num_frames] = True
        clip["frame_index"][:num_frames] = np.arange(num_frames)
        for t, mask in _masks_by_frame(record, num_frames).items():
            clip["supervised"][t] = True
            labels = decode_labels(mask, config.data.num_classes)
            _place_labels(clip, t, labels, None, config)
    except (ValueError, OSError) as error:
        raise InputError(f"clip {decode_text(record['clip_id'])}: {error}") from error
    return clip | _host_fields(record)


def motion_maps(record: Record, config: Any) -> np.ndarray:
    """Motion of a whole clip as an evaluation gives it to the model.

    Args:
      record: see the text of this file.
      config: the whole configuration; data.motion.source must not be "none".

    Returns:
      float32 [T, H, W, C], H = W = data.image_size, the frames that exist.
    """
    frame = functools.cache(lambda t: decode_rgb(record["frames"][t]))
    count, side, settings = len(record["frames"]), config.data.image_size, config.data.motion
    found = (_motion_map(record, frame, t, count, settings) for t in range(count))
    return np.stack(
        [motion.after_augmentation(_place_motion(m, None, side), settings) for m in found]
    )


def _host_fields(record: Record) -> dict[str, str]:
    return {field: decode_text(record.get(field, "")) for field in HOST_FIELDS}


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
            f"{len(record['pre_masks'])} colour masks for {num_frames} frames, but "
            "config.data.pre_masks is True: build the dataset from a folder with pre-SAM masks "
            "(one *_mask_color.png per frame), or train without the second branch: "
            "--config.data.pre_masks=False"
        )


def _draw_augmentation(rng: np.random.Generator, shape: tuple[int, ...], data: Any) -> Any:
    """One draw for all frames of a clip, whose first one has this shape."""
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
    """At most data.num_supervised of the frames, in order; draws only where there are more."""
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


def _as_it_is(image: np.ndarray, resample: Image.Resampling) -> np.ndarray:
    return image


def _place_image(image: np.ndarray, draw: Any, t: int, side: int) -> np.ndarray:
    if draw is None:
        return transforms.resize(image, (side, side), transforms.BILINEAR)
    return transforms.augment_image(image, draw, draw.image_jitter[t])


def _place_pre_mask(image: np.ndarray, draw: Any, t: int, side: int) -> np.ndarray:
    if draw is None:  # nearest: the palette's colours stay what they are
        return transforms.resize(image, (side, side), transforms.NEAREST)
    return transforms.augment_image(image, draw, draw.pre_mask_jitter[t])


def _place_motion(found: np.ndarray, draw: Any, side: int) -> np.ndarray:
    if draw is None:
        return transforms.resize_motion(found, (side, side))
    return transforms.augment_motion(found, draw)


def _motion_map(
    record: Record, frame: Any, t: int, num_frames: int, motion_config: Any
) -> np.ndarray:
    """Motion of frame t before any augmentation, float32 [H, W, 1 or 2]."""
    flow = record.get("flow")
    is_stored = motion_config.source == "auto" and flow is not None and np.size(flow) > 0
    if is_stored and len(flow) != num_frames:
        raise InputError(f"flow for {len(flow)} of {num_frames} frames")
    index = motion.map_index(t, num_frames, motion_config.first_frame)
    if t == 0 and is_stored and motion_config.first_frame == "next" and np.any(flow[0]):
        index = 0
    if index is None:
        channels = 2 if motion_config.map != "magnitude_max" else 1
        return np.zeros((*frame(t).shape[:2], channels), np.float32)
    if is_stored:
        return motion.before_augmentation(np.asarray(flow[index]), motion_config)
    if motion.needs_vectors(motion_config):
        raise InputError(
            f"no flow is stored, and config.data.motion.map = {motion_config.map!r} with "
            f"compensate_camera = {motion_config.compensate_camera} cannot do without: make it "
            "(python -m avs_jax.flow) and build the dataset with --flow_dir"
        )
    return motion.frame_difference(frame(index - 1), frame(index))[..., None]


def _place_moving(clip: Clip, record: Record, config: Any) -> None:
    """Writes which pixels move by the clip's own motion, whatever motion the model is given."""
    count, size = len(record["frames"]), config.evaluate.score_size
    if config.data.motion.source == "none":  # a model that reads no motion is asked about it too
        config = config.copy_and_resolve_references()
        config.data.motion.source = "auto"
        own = motion_maps(record, config)
    else:
        own = motion_maps(record, config) if "motion_of" in record else clip["motion"][:count]
    threshold = config.evaluate.moving_threshold
    clip["moving"][:count] = [moving_pixels(found, size, threshold) for found in own]


def moving_pixels(motion_map: np.ndarray, size: int, threshold: float) -> np.ndarray:
    """Where the strength of a map [H, W, C], at `size` px, exceeds a threshold: bool [S, S]."""
    strength = np.linalg.norm(motion_map, axis=-1)
    return transforms.resize(strength, (size, size), transforms.BILINEAR) > threshold


def _place_labels(clip: Clip, row: int, labels: np.ndarray, draw: Any, config: Any) -> None:
    """Writes one frame's ground truth, uint8 [H, W], into the fields of `clip`."""
    if "labels" in clip:
        side = config.evaluate.score_size
        clip["labels"][row] = transforms.resize(labels, (side, side), transforms.NEAREST)
        return
    labels = transforms.augment_labels(labels, draw)
    classes = [c for c in np.unique(labels) if c != IGNORE_LABEL]
    if len(classes) > config.data.max_targets:
        raise InputError(
            f"classes {[int(c) for c in classes]} in one frame, more than "
            f"config.data.max_targets = {config.data.max_targets}"
        )
    for target, label in enumerate(classes):
        clip["target_masks"][row, target] = labels == label
        clip["target_labels"][row, target] = label
        clip["target_valid"][row, target] = True


def _place_prototypes(clip: Clip, row: int, record: Record, data: Any) -> None:
    """Writes the prototype loss's target of one frame whose other targets are there."""
    if data.prototype_target == "category" and clip["frame_index"][row] == 0:
        clip["proto_target"][row, _category_index(record, data.num_prototypes)] = 1.0
        clip["proto_valid"][row] = True
    if data.prototype_target == "classes" and clip["supervised"][row]:
        present = clip["target_labels"][row][clip["target_valid"][row]]
        clip["proto_target"][row, present] = 1.0
        clip["proto_valid"][row] = True


def decode_rgb(image: bytes | np.ndarray) -> np.ndarray:
    """An encoded image, or one already decoded, as uint8 RGB [H, W, 3]."""
    if isinstance(image, np.ndarray) and image.ndim == 3:
        return image
    with Image.open(io.BytesIO(bytes(image))) as opened:
        return np.asarray(opened.convert("RGB"))


def decode_labels(image: bytes | np.ndarray, num_classes: int) -> np.ndarray:
    """A label image as uint8 [H, W] of classes: of two classes, whatever is not 0 is 1.

    More classes are the values as they are. Palette images count by index, colour images (two
    classes only) by their brightest channel.
    """
    if isinstance(image, np.ndarray) and image.ndim >= 2:
        labels = image
    else:
        with Image.open(io.BytesIO(bytes(image))) as opened:
            labels = np.asarray(opened.convert("RGB") if opened.mode in ("RGBA", "LA") else opened)
    if num_classes == 2:
        labels = labels.max(axis=-1) if labels.ndim == 3 else labels
        return (labels > 0).astype(np.uint8)
    labels = labels[..., 0] if labels.ndim == 3 and labels.shape[-1] == 1 else labels
    if labels.ndim != 2:
        raise InputError(
            f"a label image of shape {labels.shape}, expected one class index per pixel"
        )
    strange = [int(v) for v in np.unique(labels) if num_classes <= v != IGNORE_LABEL]
    if strange:
        raise InputError(f"classes {strange} in a label image, expected 0 to {num_classes - 1}")
    return labels.astype(np.uint8)


def decode_text(value: Any) -> str:
    """A text of a record, which TFDS gives as bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)
