"""Prediction of task `refer` on your own videos: --text="the red star", once or several times.

The output, in DIR for one expression and in DIR/0, DIR/1, ... for several:

  masks/0000.png ...  one per second at the video's size: 255 on what the expression means
  overlay.mp4         one frame per second, with the video's sound
  DIR/results.json    per expression and second: presence (probability that what is meant is in the
                      frame; the mask is empty below config.evaluate.presence_threshold), area
                      (fraction of the frame in the mask) and score (mean probability of the mask's
                      pixels, 0 if it is empty); and cut_word_pieces, how many word pieces at the
                      end of the expression were not read, beyond config.data.text.max_tokens

The frame of second k is that of k + config.data.frame_offset s, in Ref-AVS the first of the second.
A pixel is in the mask above Ref-AVS's threshold of 0.4. The video is split into windows of
config.data.num_frames seconds, each processed like a clip of an evaluation. Images and sound of a
window are decoded and encoded once for EXPRESSIONS_AT_ONCE expressions; threads decode the next
window and write the previous one (side_by_side.py).
"""

import contextlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from avs_jax.data.tokens import Tokens, clean, cut_note
from avs_jax.data.video import Video, Window, decode_windows, probe, tracked_windows
from avs_jax.data.video_output import OverlayWriter
from avs_jax.files import atomic_folder
from avs_jax.inference.predictor import Predictor
from avs_jax.inference.side_by_side import ahead, behind
from avs_jax.results.visualize import overlay
from avs_jax.spec import UsageError
from avs_jax.task import Task

EXPRESSIONS_AT_ONCE = 8  # more take more memory


def predict_expressions(
    predictor: Predictor,
    path: str | os.PathLike,
    output: str | os.PathLike,
    score: Callable[..., dict[str, jax.Array]],
    threshold: float,
    text: Sequence[str] = (),
) -> list[str]:
    """Writes masks, overlays and results.json of a video.

    Args:
      path: mp4, mov, webm: frames and sound.
      output: folder, replaced as a whole at the end.
      score: (outputs, inputs, size=) -> pred, presence and fallback; see results/pixel_scores.py.
      threshold: of the masks.
      text: the expressions.

    Returns:
      lines to print.

    Raises:
      InputError: no expression, or an empty one.
    """
    texts = [clean(words) for words in text]
    if not texts or not all(texts):
        raise UsageError('--text="..." is missing or empty: what should be segmented?')
    video = probe(path)
    scored = make_scored(predictor, score)
    tokens = [predictor.task.rows.tokens(words, repr(words)) for words in texts]
    found = [
        {
            "text": words,
            "cut_word_pieces": token.num_cut,
            "overlay": f"{place}overlay.mp4",
            "seconds": [],
        }
        for words, token, place in zip(texts, tokens, _places(len(texts)), strict=True)
    ]
    with atomic_folder(output) as folder:
        for first in range(0, len(found), EXPRESSIONS_AT_ONCE):
            part = slice(first, first + EXPRESSIONS_AT_ONCE)
            _predict(predictor, scored, video, threshold, folder, found[part], tokens[part])
        results = {
            "video": str(path),
            "size": {"width": video.width, "height": video.height},
            "duration_seconds": round(video.duration, 3),
            "window_seconds": predictor.config.data.num_frames,
            "expressions": found,
        }
        (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    limit = predictor.config.data.text.max_tokens
    lines = [_summary(expression, limit) for expression in found]
    return [*lines, f"{output}: masks, overlay.mp4, results.json"]


def make_scored(predictor: Predictor, score: Callable) -> Callable:
    """`score`, compiled once per size."""
    return predictor.once("scored", lambda: jax.jit(score, static_argnames="size"))


def _places(count: int) -> list[str]:
    """The folder of each expression, below the output's."""
    return [""] if count == 1 else [f"{i}/" for i in range(count)]


def _predict(
    predictor: Predictor,
    scored: Callable,
    video: Video,
    threshold: float,
    folder: pathlib.Path,
    expressions: Sequence[dict[str, Any]],
    tokens: Sequence[Tokens],
) -> None:
    """Writes masks and overlays of some expressions, and fills their `seconds`."""
    places = [folder / expression["overlay"] for expression in expressions]
    for place in places:
        (place.parent / "masks").mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(OverlayWriter(place, 1.0, video)) for place in places]
        later = stack.enter_context(behind())
        data = predictor.config.data
        windows = decode_windows(video, data.num_frames, offset=data.frame_offset)
        for window in tracked_windows(stack.enter_context(ahead(windows)), video):
            inputs = window_inputs(
                predictor.task,
                f"{video.path.name} from second {window.start}",
                window.frames,
                window.waveform,
                video.sample_rate,
            )
            size = (video.height, video.width)
            result = score_expressions(predictor, scored, inputs, tokens, size)
            later(_write, folder, video, threshold, window, result, expressions, writers)


def window_inputs(
    task: Task, name: str, frames: np.ndarray, waveform: np.ndarray, sample_rate: int
) -> dict[str, np.ndarray]:
    """What the model reads of a window besides its expressions, [1, ...].

    Args:
      name: of the window, for messages.
      frames: uint8 RGB [t, H, W, 3], t <= config.data.num_frames.
      waveform: int16 [t * sample_rate, channels].

    Raises:
      InputError: the model reads what a window does not have.
    """
    record = {
        "clip_id": name,
        "frames": list(frames),
        "waveform": waveform,
        "sample_rate": sample_rate,
        "text": "",
    }
    row = task.rows.prepare(record, None)
    return {name: np.asarray(x)[None] for name, x in task.inputs(row).items()}


def score_expressions(
    predictor: Predictor,
    scored: Callable,
    inputs: Mapping[str, np.ndarray],
    tokens: Sequence[Tokens],
    size: tuple[int, int],
) -> dict[str, np.ndarray]:
    """What `score` returns for E expressions of one window, whose images are encoded once.

    Args:
      inputs: of `window_inputs`.
      size: (H, W) of the result.

    Returns:
      pred float32 [E, T, H, W], presence float32 [E, T] and fallback bool [E, T].
    """
    asked = {
        **inputs,
        "text_ids": np.stack([token.ids for token in tokens]),
        "text_mask": np.stack([token.mask for token in tokens]),
    }
    return jax.device_get(scored(predictor.outputs(asked), asked, size=size))


def found_in_frame(
    result: Mapping[str, np.ndarray], i: int, t: int, threshold: float
) -> tuple[np.ndarray, dict[str, float]]:
    """Mask bool [H, W] of expression i in frame t of a window; presence, area and score."""
    probability = result["pred"][i, t]
    mask = probability > threshold
    return mask, {
        "presence": round(float(result["presence"][i, t]), 4),
        "area": float(mask.mean()),
        "score": float(probability[mask].mean()) if mask.any() else 0.0,
    }


def _write(
    folder: pathlib.Path,
    video: Video,
    threshold: float,
    window: Window,
    result: Mapping[str, np.ndarray],
    expressions: Sequence[dict[str, Any]],
    writers: Sequence[OverlayWriter],
) -> None:
    """Writes the masks and overlays of a window."""
    heard = window.waveform[: window.num_heard]
    for i, (expression, writer) in enumerate(zip(expressions, writers, strict=True)):
        masks = (folder / expression["overlay"]).parent / "masks"
        for t, frame in enumerate(window.frames):
            mask, facts = found_in_frame(result, i, t, threshold)
            path = masks / f"{window.start + t:04d}.png"
            Image.fromarray(mask.astype(np.uint8) * 255).save(path)
            place = path.relative_to(folder).as_posix()
            expression["seconds"].append({"second": window.start + t, "mask": place, **facts})
            sound = heard[t * video.sample_rate : (t + 1) * video.sample_rate]
            writer.add(overlay(frame, mask), sound)


def _summary(expression: dict[str, Any], limit: int) -> str:
    """The seconds of an expression that was read up to `limit` tokens."""
    times = [str(row["second"]) for row in expression["seconds"] if row["area"] > 0]
    found = "seconds " + ", ".join(times) if times else "nothing"
    note = cut_note(expression["cut_word_pieces"], "data.text.max_tokens", limit)
    return f"{expression['text']!r}: {found}{note}"
