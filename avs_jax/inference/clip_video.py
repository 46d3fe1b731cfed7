"""Prediction of task `segment` on your own videos, and on incomplete arrays.

A video is split into windows of config.data.num_frames seconds. Each is processed like an
evaluation clip, but scores are resized to the video's own size. The output is

  masks/0000.png ...  one per second at the video's size: 255 on the sounding object, or the class
                      index with more than two classes
  overlay.mp4         one frame per second, with the video's sound
  results.json        per second: area (fraction of the frame in the mask) and score (mean
                      probability of the mask's pixels, 0 if it is empty)

With --align=DIR, a checkpoint of task `align` that has text, results.json also names what sounds:
class and class_score, from the frame within the box of its mask and from the sound (zero_shot.py).

Windows are decoded ahead and written behind in threads, a bounded number of each
(side_by_side.py). Frames, sound and color masks of a window are made once; only a motion track
reads the file a second time.

Without --pre_masks, color masks come from scikit-image's felzenszwalb, and the output says so.
config.data.motion.model chooses the motion: frame difference, or RAFT with --flow_weights=DIR
between the frames chosen by config.data.motion.pairs. For models with synchrony,
config.data.track.model makes the motion track of the whole video.
"""

import functools
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image
from skimage.segmentation import felzenszwalb

from avs_jax.data.input_files import read_bytes
from avs_jax.data.motion import check_config, needs_vectors
from avs_jax.data.pre_masks import paint_by_area, to_rgb
from avs_jax.data.video import Video, Window, decode_windows, probe
from avs_jax.data.video_output import OverlayWriter
from avs_jax.files import atomic_folder
from avs_jax.inference.flow_estimator import FlowEstimator, window_flow
from avs_jax.inference.predictor import Predictor
from avs_jax.inference.side_by_side import ahead, behind
from avs_jax.inference.video_tracks import make_track_estimator, needs_weights, video_tracks
from avs_jax.progress import Progress
from avs_jax.results.postprocess import object_probability
from avs_jax.results.visualize import overlay
from avs_jax.spec import Field, InputError, UsageError

SEGMENT_SIDE = 256  # px, longer side for felzenszwalb segmentation
FELZENSZWALB = "felzenszwalb"
MOTION_FIELDS = ("motion", "motion_track", "sound_track")
# (frames, masks, waveform, rate) -> what results.json adds to each second
Namer = Callable[[np.ndarray, np.ndarray, np.ndarray, int], Sequence[Mapping[str, Any]]]


def predict_video(
    predictor: Predictor,
    path: str | os.PathLike,
    output: str | os.PathLike,
    scores: Callable[..., jax.Array],
    pre_masks: str | os.PathLike | None = None,
    flow_weights: str | os.PathLike | None = None,
    align: str | os.PathLike | None = None,
    make_namer: Callable[[str | os.PathLike], Namer] | None = None,
) -> list[str]:
    """Writes masks, overlay.mp4 and results.json of a video.

    Args:
      path: mp4, mov, webm: frames and sound.
      output: folder, replaced as a whole at the end.
      scores: of the host, see tasks/segment.py.
      pre_masks: folder with one color mask PNG per second, sorted by name.
      flow_weights: of RAFT, for the model's motion input.
      align: checkpoint that make_namer takes, to name what sounds; None: no names.

    Returns:
      lines to print.
    """
    reads = predictor.task.model.reads()
    if pre_masks and "pre_masks" not in reads:
        raise UsageError("--pre_masks is not read: the model has no color masks")
    video, config = probe(path), predictor.config
    given = _pre_mask_files(pre_masks, video.num_seconds) if pre_masks else None
    tracks, weights = itertools.repeat(None), flow_weights
    if "motion_track" in reads:
        estimate = make_track_estimator(config, flow_weights)
        tracks = video_tracks(path, config, video.num_seconds, estimate)
        if needs_weights(config) and config.data.motion.model == "difference":
            weights = None  # the track alone reads them
    estimator = predictor.once(
        ("flow", str(weights)), lambda: make_estimator(config, weights, "motion" in reads)
    )
    namer = predictor.once(("align", str(align)), lambda: make_namer(align)) if align else None
    labels = predictor.once(
        "labels",
        lambda: jax.jit(functools.partial(_labels, scores=scores), static_argnames="size"),
    )
    seconds: list[dict[str, Any]] = []
    with atomic_folder(output) as folder:
        (folder / "masks").mkdir()
        with (
            OverlayWriter(folder / "overlay.mp4", 1.0, video) as writer,
            behind() as later,
            ahead(_read(config, video, given, estimator, tracks)) as windows,
            Progress(video.path.name, video.num_seconds, "second") as progress,
        ):
            for window, colors, track in windows:
                found = _predict(predictor, labels, video, window, colors, track, estimator)
                names = _names(namer, video, window, found[0])
                later(_write, folder, writer, seconds, config, video, window, *found, names)
                progress.add(len(window.frames))
        source = None
        if config.data.pre_masks:
            source = str(pre_masks) if pre_masks else FELZENSZWALB
        about = _about(path, video, config, reads, estimator)
        results = {**about, "pre_masks": source, "seconds": seconds}
        (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    lines = [f"{output}: {len(seconds)} masks, overlay.mp4, results.json"]
    if source == FELZENSZWALB:
        lines.insert(0, f"color masks: none given, made with {FELZENSZWALB} (--pre_masks=DIR)")
    return lines


def _about(
    path: str | os.PathLike,
    video: Video,
    config: ConfigDict,
    reads: Collection[str],
    estimator: FlowEstimator | None,
) -> dict[str, Any]:
    """What results.json says of the video and of the motion that the model read."""
    motion = None
    if "motion" in reads:
        motion = estimator.model if estimator else "difference"
    return {
        "video": str(path),
        "size": {"width": video.width, "height": video.height},
        "duration_seconds": round(video.duration, 3),
        "window_seconds": config.data.num_frames,
        "motion": motion,
        "motion_track": config.data.track.model if "motion_track" in reads else None,
    }


def _labels(outputs, inputs, size, *, scores):
    """Class of each pixel [B, T, *size], and its float32 probability.

    With two classes, it is the object's probability, and the class is 1 above 0.5.
    """
    found = scores(outputs, inputs, size)
    if found.shape[-1] == 2:
        probability = object_probability(found)
        return probability > 0.5, probability
    return found.argmax(-1), jax.nn.softmax(found, axis=-1).max(-1)


def _read(
    config: ConfigDict,
    video: Video,
    given: list[pathlib.Path] | None,
    estimator: FlowEstimator | None,
    tracks: Iterator[np.ndarray | None],
) -> Generator[tuple[Window, list, np.ndarray | None], None, None]:
    """Each window with its color masks and its motion track."""
    with_pairs = estimator is not None and config.data.motion.pairs == "video"
    for window in decode_windows(video, config.data.num_frames, with_pairs):
        colors = _window_pre_masks(config, window.frames, given, window.start)
        yield window, colors, next(tracks)


def _predict(
    predictor: Predictor,
    labels: Callable,
    video: Video,
    window: Window,
    colors: list,
    track: np.ndarray | None,
    estimator: FlowEstimator | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Class uint8 and probability float32 of each pixel of a window, [t, H, W]."""
    config, num_frames = predictor.config, len(window.frames)
    record = {
        "clip_id": f"{video.path.name} from second {window.start}",
        "frames": list(window.frames),
        "masks": (),
        "mask_index": (),
        "pre_masks": colors,
        "waveform": window.waveform,
        "sample_rate": video.sample_rate,
    }
    if estimator is not None:
        pairs = iter(window.pairs) if window.pairs else None
        record["flow"] = window_flow(estimator, window.frames, pairs, config.data.image_size)
    if track is not None:
        record |= {"motion_track": track, "motion_track_rate": config.data.track.rate}
    prepared = predictor.task.rows.prepare(record, None)
    batch = {
        k: np.asarray(v)[None] for k, v in prepared.items() if k not in ("clip_id", "category")
    }
    inputs = predictor.task.inputs(batch)
    found = labels(predictor.outputs(inputs), inputs, size=(video.height, video.width))
    classes, probability = (np.asarray(x)[0, :num_frames] for x in found)
    return classes.astype(np.uint8), probability


def _names(
    namer: Namer | None, video: Video, window: Window, classes: np.ndarray
) -> Sequence[Mapping[str, Any]]:
    """What sounds in each second of a window, empty without a namer."""
    if namer is None:
        return [{}] * len(window.frames)
    return namer(window.frames, classes > 0, window.waveform, video.sample_rate)


def _write(
    folder: pathlib.Path,
    writer: OverlayWriter,
    seconds: list[dict[str, Any]],
    config: ConfigDict,
    video: Video,
    window: Window,
    classes: np.ndarray,
    probability: np.ndarray,
    names: Sequence[Mapping[str, Any]],
) -> None:
    """Writes the masks and overlays of a window, and fills `seconds`."""
    heard = window.waveform[: window.num_heard]
    for t, frame in enumerate(window.frames):
        mask = classes[t] > 0
        score = float(probability[t][mask].mean()) if mask.any() else 0.0
        name = f"masks/{window.start + t:04d}.png"
        image = classes[t] * 255 if config.data.num_classes == 2 else classes[t]
        Image.fromarray(image).save(folder / name)
        row = {"second": window.start + t, "mask": name, "area": float(mask.mean())}
        seconds.append(row | {"score": score} | names[t])
        sound = heard[t * video.sample_rate : (t + 1) * video.sample_rate]
        writer.add(overlay(frame, mask), sound)


def _window_pre_masks(config: ConfigDict, frames, given, start: int) -> list:
    if not config.data.pre_masks:
        return []
    if given:
        return [read_bytes(given[start + t]) for t in range(len(frames))]
    return [segment_colors(frame) for frame in frames]


def segment_colors(image: np.ndarray) -> np.ndarray:
    """A class-agnostic color mask of a frame, painted as in data/pre_masks.py.

    uint8 [H, W, 3] -> uint8 [h, w, 3], the same aspect ratio with sides of at most SEGMENT_SIDE px.
    """
    height, width = image.shape[:2]
    scale = min(1.0, SEGMENT_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    smallest = max(1, small.shape[0] * small.shape[1] // 200)
    parts = felzenszwalb(small, scale=200, sigma=0.8, min_size=smallest, channel_axis=-1)
    return to_rgb(paint_by_area([parts == part for part in range(parts.max() + 1)]))


def _pre_mask_files(folder: str | os.PathLike, count: int) -> list[pathlib.Path]:
    folder = pathlib.Path(folder).expanduser()
    files = sorted(folder.glob("*.png"), key=lambda p: (len(p.name), p.name))
    if len(files) < count:
        raise InputError(f"{folder}: {len(files)} PNG files for a video of {count} seconds")
    return files


def make_estimator(
    config: ConfigDict, weights: str | os.PathLike | None, reads_motion: bool
) -> FlowEstimator | None:
    """The flow estimator of the configuration; None for frame difference or no motion.

    Raises:
      InputError: unused or missing weights.
    """
    motion = config.data.motion
    check_config(motion)
    is_read = reads_motion and motion.source != "none"
    has_flow = is_read and motion.source == "auto" and motion.model != "difference"
    if has_flow and weights is None:
        raise UsageError(f"config.data.motion.model = {motion.model!r} needs --flow_weights=DIR")
    if not has_flow and weights is not None:
        raise UsageError(
            "--flow_weights is not read: the model has no motion, or it is the difference of "
            "frames; --config.data.motion.model=raft_large (or raft_small) says otherwise"
        )
    if is_read and not has_flow and needs_vectors(motion):
        raise UsageError(
            f"config.data.motion.map = {motion.map!r} with compensate_camera = "
            f"{motion.compensate_camera} needs flow: --config.data.motion.model=raft_large "
            "--flow_weights=DIR"
        )
    return FlowEstimator(motion.model, weights) if has_flow else None


def complete_arrays(
    arrays: Mapping[str, np.ndarray],
    fields: Mapping[str, Field],
    sizes: Mapping[str, int],
    reads: Collection[str],
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Fills in missing arrays of a user, and drops those that the model does not read.

    Args:
      arrays: checked input fields, [B, T, ...].
      fields, sizes: of the task's rows.
      reads: fields that the model reads.

    Returns:
      the inputs, and notes on assumed or unused arrays.
    """
    inputs, notes = dict(arrays), []
    images = inputs["images"]
    inputs.setdefault("valid", np.ones(images.shape[:2], bool))
    if "pre_masks" in reads and "pre_masks" not in inputs:
        notes.append(f"no pre_masks given: made with {FELZENSZWALB}")
        size = images.shape[3], images.shape[2]
        made = [
            np.asarray(Image.fromarray(segment_colors(x)).resize(size, Image.Resampling.NEAREST))
            for x in images.reshape(-1, *images.shape[2:])
        ]
        inputs["pre_masks"] = np.stack(made).reshape(images.shape)
    for name in MOTION_FIELDS:
        if name in reads and name not in inputs:
            notes.append(
                f"no {name} given, which the model reads: zeros assumed, as if nothing moved"
            )
            known = {**sizes, **dict(zip("BTHW", images.shape, strict=False))}
            axes = fields[name].axes.split()
            shape = [int(axis) if axis.isdigit() else known[axis] for axis in axes]
            inputs[name] = np.zeros(shape, fields[name].dtype)
    for name in ("pre_masks", *MOTION_FIELDS):
        if name in inputs and name not in reads:
            notes.append(f"{name} given, which this model does not read")
            del inputs[name]
    return inputs, notes
