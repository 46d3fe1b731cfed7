"""Prediction: own videos, or arrays, to masks of what sounds.

  python -m avs_jax.predict --config=configs/s4_ama.py --checkpoint=DIR
      --video=clip.mp4 --output=DIR     or     --arrays=in.npz --output=out.npz

A video is cut into windows of config.data.num_frames seconds; each goes the way of an evaluation
clip (data.clip, results.postprocess), except that scores are resized to the video's own size.
Written are

  masks/0000.png ...  one per second, of the video's size: 255 where the object sounds; the class
                      index where there are more than two classes
  overlay.mp4         one picture per second, with the video's sound
  results.json        per second: area (share of the picture in the mask) and score (mean
                      probability of the mask's pixels, 0 where it is empty)

Arrays: images uint8 [B, T, H, W, 3] and log_mel float32 [B, T, 96, 64]; where they exist, pre_masks
uint8 [B, T, H, W, 3], motion float32 [B, T, H, W] ([B, T, H, W, 2] with data.motion.map = "uv") and
valid bool [B, T]. Written are pred_logits [B, T, Q, K+1], pred_masks [B, T, h, w, Q] (of the image
padded to multiples of 32), sem_seg [B, T, S, S, K] with S = config.evaluate.score_size and, with
AMA, motion_weight [B, T, g, g].

Colour masks that are not given are made with scikit-image's felzenszwalb, and said so. A video's
motion is estimated as config.data.motion.model says: the difference of frames, or RAFT with
--flow-weights=DIR between the pictures that config.data.motion.pairs names.

What was compiled is kept in ~/.cache/avs_jax, so that only the first start compiles.
"""

import json
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from PIL import Image
from skimage.segmentation import felzenszwalb

from avs_jax.data.clip import prepare_clip
from avs_jax.data.motion import check_config, needs_vectors, num_channels
from avs_jax.data.pre_masks import paint_by_area, to_rgb
from avs_jax.data.video import Video, probe, read_pairs, read_windows, write_overlay
from avs_jax.results.visualize import overlay
from avs_jax.runtime.command_line import UsageError, parse
from avs_jax.runtime.compilation_cache import use_compilation_cache
from avs_jax.runtime.flow_estimator import FlowEstimator, window_flow
from avs_jax.runtime.predictor import Predictor
from avs_jax.spec import INPUT_FIELDS, MEL_BANDS, MEL_FRAMES, InputError, check_shape, nearest

SEGMENT_SIDE = 256  # px, longer side at which pictures are segmented
FELZENSZWALB = "felzenszwalb"
# name: (dtype, pattern, required) of --arrays
ARRAYS = {
    "images": (np.uint8, "B T H W 3", True),
    "log_mel": (np.float32, f"B T {MEL_FRAMES} {MEL_BANDS}", True),
    "pre_masks": (np.uint8, "B T H W 3", False),
    "motion": (np.float32, "B T H W", False),
    "valid": (np.bool_, "B T", False),
}


# ---- a video ----


def predict_video(
    predictor: Predictor,
    path: str | os.PathLike,
    output: str | os.PathLike,
    pre_masks: str | os.PathLike | None = None,
    estimator: FlowEstimator | None = None,
) -> dict[str, Any]:
    """Writes masks, overlay.mp4 and results.json of a video.

    Args:
      path: mp4, mov, webm: pictures and sound.
      output: folder; made if need be, files of the same names are replaced.
      pre_masks: folder with one colour mask PNG per second, in the order of their names.
      estimator: of the motion that the model reads; None: the difference of frames.

    Returns:
      what results.json holds.

    Raises:
      VideoError, ValueError, OSError: no usable video, masks or checkpoint; one line.
    """
    video, output = probe(path), pathlib.Path(output)
    given = _pre_mask_files(pre_masks, video.num_seconds) if pre_masks else None
    (output / "masks").mkdir(parents=True, exist_ok=True)
    seconds: list[dict[str, Any]] = []
    pictures = _predict_windows(predictor, video, given, estimator, output, seconds)
    unfinished = output / "overlay.unfinished.mp4"
    write_overlay(unfinished, pictures, 1.0, path)
    os.replace(unfinished, output / "overlay.mp4")
    source = None
    if predictor.config.model.pre_masks:
        source = str(pre_masks) if pre_masks else FELZENSZWALB
    results = {
        "video": str(path),
        "size": {"width": video.width, "height": video.height},
        "duration_seconds": round(video.duration, 3),
        "window_seconds": predictor.config.data.num_frames,
        "pre_masks": source,
        "motion": (estimator.model if estimator else "difference")
        if predictor.has_motion
        else None,
        "seconds": seconds,
    }
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    return results


def _predict_windows(
    predictor: Predictor, video: Video, given, estimator, output: pathlib.Path, seconds: list
) -> Iterator[np.ndarray]:
    """Predicts window by window: writes masks, fills `seconds`, yields pictures."""
    config = predictor.config
    pairs = read_pairs(video.path) if config.data.motion.pairs == "video" else None
    for frames, waveform, start in read_windows(video.path, config.data.num_frames):
        colours = ()
        if config.model.pre_masks and given:
            colours = [given[start + t].read_bytes() for t in range(len(frames))]
        elif config.model.pre_masks:
            colours = [segment_colours(frame) for frame in frames]
        record = {
            "clip_id": f"{video.path.name} from second {start}",
            "frames": list(frames),
            "masks": (),
            "mask_index": (),
            "pre_masks": colours,
            "waveform": waveform,
            "sample_rate": video.sample_rate,
        }
        if estimator is not None:
            record["flow"] = window_flow(estimator, frames, pairs, config.data.image_size)
        clip = prepare_clip(record, config)
        batch = {k: np.asarray(v)[None] for k, v in clip.items() if k in INPUT_FIELDS}
        labels, prob = predictor.labels(batch, (video.height, video.width))
        for t, frame in enumerate(frames):
            found = labels[0, t] > 0
            score = float(prob[0, t][found].mean()) if found.any() else 0.0
            name = f"masks/{start + t:04d}.png"
            picture = labels[0, t] * 255 if config.data.num_classes == 2 else labels[0, t]
            Image.fromarray(picture).save(output / name)
            area = float(found.mean())
            seconds.append({"second": start + t, "mask": name, "area": area, "score": score})
            yield overlay(frame, found)
        done = start + len(frames)
        print(f"second {done} of {video.num_seconds}", file=sys.stderr)


def segment_colours(image: np.ndarray) -> np.ndarray:
    """A class-agnostic colour mask of a picture, painted by the rule of data.pre_masks.

    Args:
      image: uint8 [H, W, 3].

    Returns:
      uint8 [h, w, 3], of the same aspect, its longer side SEGMENT_SIDE px at most.
    """
    height, width = image.shape[:2]
    scale = min(1.0, SEGMENT_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    smallest = max(1, small.shape[0] * small.shape[1] // 200)
    parts = felzenszwalb(small, scale=200, sigma=0.8, min_size=smallest, channel_axis=-1)
    return to_rgb(paint_by_area([parts == part for part in range(parts.max() + 1)]))


def _pre_mask_files(folder: str | os.PathLike, count: int) -> list[pathlib.Path]:
    files = sorted(pathlib.Path(folder).glob("*.png"), key=lambda p: (len(p.name), p.name))
    if len(files) < count:
        raise InputError(f"{folder}: {len(files)} PNG files for a video of {count} seconds")
    return files


# ---- arrays ----


def predict_arrays(
    predictor: Predictor, arrays: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Predicts from arrays, clip by clip.

    Args:
      arrays: as the text of this file describes them.

    Returns:
      the results, and what was assumed or left unused, in words.

    Raises:
      ValueError: a name, dtype or shape is wrong, or the checkpoint does not fit.
    """
    channels = num_channels(predictor.config.data.motion)
    sizes = check_arrays(arrays, channels)
    batch, notes = dict(arrays), []
    images = batch["images"]
    batch.setdefault("valid", np.ones(images.shape[:2], bool))
    if predictor.config.model.pre_masks and "pre_masks" not in batch:
        notes.append(f"no pre_masks given: made with {FELZENSZWALB}")
        size = (sizes["W"], sizes["H"])
        made = [
            np.asarray(Image.fromarray(segment_colours(x)).resize(size, Image.Resampling.NEAREST))
            for x in images.reshape(-1, *images.shape[2:])
        ]
        batch["pre_masks"] = np.stack(made).reshape(images.shape)
    if predictor.has_motion and "motion" not in batch:
        notes.append("no motion given, which AMA reads: zeros assumed, as if nothing moved")
        shape = images.shape[:4] if channels == 1 else (*images.shape[:4], channels)
        batch["motion"] = np.zeros(shape, np.float32)
    used = {"pre_masks": predictor.config.model.pre_masks, "motion": predictor.has_motion}
    for name in [name for name, is_used in used.items() if name in batch and not is_used]:
        notes.append(f"{name} given, which this model does not read")
        del batch[name]
    if "motion" in batch and channels == 1:
        batch["motion"] = batch["motion"][..., None]
    size = (predictor.config.evaluate.score_size,) * 2
    clips = [
        jax.device_get(predictor.scores({k: x[b : b + 1] for k, x in batch.items()}, size))
        for b in range(sizes["B"])
    ]
    return {name: np.concatenate([clip[name] for clip in clips]) for name in clips[0]}, notes


def check_arrays(arrays: Mapping[str, np.ndarray], motion_channels: int = 1) -> dict[str, int]:
    """Checks names, dtypes and shapes against ARRAYS; returns the sizes of B, T, H and W.

    Args:
      motion_channels: 2 where motion is (u, v), an axis more.

    Raises:
      ValueError: naming the array and what it should be.
    """
    for name in arrays:
        if name not in ARRAYS:
            known = ", ".join(nearest(name, list(ARRAYS)) or ARRAYS)
            raise InputError(f"{name}: no array of that name is read; nearest: {known}")
    sizes: dict[str, int] = {}
    for name, (dtype, pattern, is_required) in ARRAYS.items():
        if name not in arrays:
            if is_required:
                raise InputError(f"{name} is missing: {np.dtype(dtype)} [{pattern}]")
            continue
        if name == "motion" and motion_channels > 1:
            pattern += f" {motion_channels}"
        if arrays[name].dtype != dtype:
            raise InputError(f"{name}: {arrays[name].dtype}, expected {np.dtype(dtype)}")
        try:
            sizes = check_shape(name, arrays[name], pattern, **sizes)
        except ValueError as error:
            raise InputError(str(error)) from error
    if 0 in sizes.values():
        raise InputError(f"images: shape {arrays['images'].shape} is empty")
    return sizes


# ---- command line ----


def main(argv: Sequence[str]) -> int:
    """Predicts; returns the exit status, 1 with one line on stderr where it is not possible."""
    try:
        run(argv)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run(argv: Sequence[str]) -> None:
    """`main`, with exceptions."""
    config, values = parse(argv, _define_flags, __doc__, required=["checkpoint", "output"])
    if (values.video is None) == (values.arrays is None):
        raise UsageError("give --video or --arrays, one of them")
    if values.video is not None:
        _run_on_video(config, values)
    else:
        _run_on_arrays(config, values)


def _run_on_video(config: ConfigDict, values: flags.FlagValues) -> None:
    probe(values.video)  # before minutes are spent on the model
    use_compilation_cache()
    estimator = _make_estimator(config, values.flow_weights)
    predictor = _make_predictor(config, values.checkpoint)
    results = predict_video(predictor, values.video, values.output, values.pre_masks, estimator)
    if results["pre_masks"] == FELZENSZWALB:
        print(f"colour masks: none given, made with {FELZENSZWALB} (--pre-masks=DIR)")
    print(f"{values.output}: {len(results['seconds'])} masks, overlay.mp4, results.json")


def _run_on_arrays(config: ConfigDict, values: flags.FlagValues) -> None:
    if values.pre_masks is not None:
        raise UsageError("--pre-masks belongs to --video; with --arrays they are an array")
    if values.flow_weights is not None:
        raise UsageError("--flow-weights belongs to --video; with --arrays motion is an array")
    arrays = _read_arrays(values.arrays)
    check_arrays(arrays, num_channels(config.data.motion))
    use_compilation_cache()
    results, notes = predict_arrays(_make_predictor(config, values.checkpoint), arrays)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    output = pathlib.Path(values.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    with open(output, "wb") as file:
        np.savez(file, **results)
    print(f"{output}: " + ", ".join(f"{name} {x.shape}" for name, x in results.items()))


def _make_predictor(config: ConfigDict, checkpoint: str) -> Predictor:
    predictor = Predictor(config, checkpoint)
    for note in predictor.notes():
        print(f"note: {note}", file=sys.stderr)
    return predictor


def _make_estimator(config: ConfigDict, weights: str | None) -> FlowEstimator | None:
    """The estimator of motion that the configuration asks for; None for frame difference or none.

    Raises:
      UsageError: weights that nothing reads, or none where they are needed.
    """
    motion = config.data.motion
    check_config(motion)
    is_read = config.model.fusion.name != "none" and motion.source != "none"
    has_flow = is_read and motion.source == "auto" and motion.model != "difference"
    if has_flow and weights is None:
        raise UsageError(f"config.data.motion.model = {motion.model!r} needs --flow-weights=DIR")
    if not has_flow and weights is not None:
        raise UsageError(
            "--flow-weights is not read: the model has no motion, or it is the difference of "
            "frames; --config.data.motion.model=raft_large (or raft_small) says otherwise"
        )
    if is_read and not has_flow and needs_vectors(motion):
        raise UsageError(
            f"config.data.motion.map = {motion.map!r} with compensate_camera = "
            f"{motion.compensate_camera} needs flow: --config.data.motion.model=raft_large "
            "--flow-weights=DIR"
        )
    return FlowEstimator(motion.model, weights) if has_flow else None


def _read_arrays(path: str) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except OSError:
        raise
    except Exception as error:  # zipfile, zlib and numpy each raise their own
        raise InputError(f"{path}: not an .npz of plain arrays ({error})") from error


def _define_flags(values: flags.FlagValues) -> None:
    def define(name, text):
        flags.DEFINE_string(name, None, text, flag_values=values)

    define("checkpoint", "a run's working directory, one of its steps, or converted weights")
    define("video", "pictures and sound: mp4, mov, webm")
    define("arrays", ".npz of arrays, instead of a video")
    define("output", "folder (--video) or .npz (--arrays) to write")
    define("pre_masks", "folder with a colour mask PNG per second of the video")
    define("flow_weights", "of RAFT, where config.data.motion.model names one")
    for name in ("pre_masks", "flow_weights"):
        flags.DEFINE_alias(name.replace("_", "-"), name, flag_values=values)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
