"""Prediction of task `refer` on your own videos: --text="the red star", once or several times.

The output, in DIR for one expression and in DIR/0, DIR/1, ... for several:

  masks/0000.png ...  one per second at the video's size: 255 on what the expression means
  overlay.mp4         one frame per second, with the video's sound
  DIR/results.json    per expression and second: presence (probability that what is meant is in the
                      frame; the mask is empty below 0.5), area (fraction of the frame in the mask)
                      and score (mean probability of the mask's pixels, 0 if it is empty)

A pixel is in the mask above Ref-AVS's threshold of 0.4. The video is split into windows of
config.data.num_frames seconds, each processed like a clip of an evaluation.
"""

import functools
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from avs_jax.data.tokens import clean
from avs_jax.data.video import Video, probe, read_windows
from avs_jax.data.video_output import write_overlay
from avs_jax.files import atomic_folder
from avs_jax.inference.predictor import Predictor
from avs_jax.results.visualize import overlay
from avs_jax.spec import InputError


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
        raise InputError('--text="..." is missing or empty: what should be segmented?')
    video, lines = probe(path), []
    scored = jax.jit(score, static_argnames="size")
    found: list[dict[str, Any]] = []
    with atomic_folder(output) as folder:
        for i, words in enumerate(texts):
            place = "" if len(texts) == 1 else f"{i}/"
            (folder / place / "masks").mkdir(parents=True)
            seconds: list[dict[str, Any]] = []
            predict = functools.partial(_predict, predictor, scored, video, words, threshold)
            frames = predict(folder, place, seconds)
            write_overlay(folder / place / "overlay.mp4", frames, 1.0, path)
            found.append({"text": words, "overlay": f"{place}overlay.mp4", "seconds": seconds})
            times = [str(row["second"]) for row in seconds if row["area"] > 0]
            lines.append(f"{words!r}: " + ("seconds " + ", ".join(times) if times else "nothing"))
        results = {
            "video": str(path),
            "size": {"width": video.width, "height": video.height},
            "duration_seconds": round(video.duration, 3),
            "window_seconds": predictor.config.data.num_frames,
            "expressions": found,
        }
        (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    return [*lines, f"{output}: masks, overlay.mp4, results.json"]


def _predict(
    predictor: Predictor,
    scored: Callable,
    video: Video,
    text: str,
    threshold: float,
    folder: pathlib.Path,
    place: str,
    seconds: list[dict[str, Any]],
) -> Iterator[np.ndarray]:
    """Predicts window by window: writes masks, fills `seconds`, yields overlays."""
    rows = predictor.task.rows
    for frames, waveform, start in read_windows(video.path, predictor.config.data.num_frames):
        record = {
            "clip_id": f"{video.path.name} from second {start}",
            "frames": list(frames),
            "waveform": waveform,
            "sample_rate": video.sample_rate,
            "text": text,
        }
        row = rows.prepare(record, None)
        inputs = {name: np.asarray(x)[None] for name, x in predictor.task.inputs(row).items()}
        size = (video.height, video.width)
        result = jax.device_get(scored(predictor.outputs(inputs), inputs, size=size))
        for t, frame in enumerate(frames):
            probability = result["pred"][0, t]
            mask = probability > threshold
            name = f"{place}masks/{start + t:04d}.png"
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / name)
            seconds.append(
                {
                    "second": start + t,
                    "mask": name,
                    "presence": round(float(result["presence"][0, t]), 4),
                    "area": float(mask.mean()),
                    "score": float(probability[mask].mean()) if mask.any() else 0.0,
                }
            )
            yield overlay(frame, mask)
