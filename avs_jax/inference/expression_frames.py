"""Prediction of task `refer` on the videos of a set without sound (data/rvos_folders.py).

  OUTPUT/{expression id}/{frame}.png   at the frames' size: 255 on what the expression means
  OUTPUT/results.json                  per expression and frame: presence, area and score, as
                                       expression_video.py says

Consecutive frames form windows of config.data.num_frames, each processed like a clip of an
evaluation, in which a frame stands for a second. The sound is silence, a waveform of zeros: what
the control `silence` and a video without sound give the model. A window is read once, and its
images are encoded once for EXPRESSIONS_AT_ONCE expressions.
"""

import contextlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from avs_jax.data.rvos_folders import Expression, VideoSet
from avs_jax.data.tokens import Tokens, clean
from avs_jax.files import atomic_folder
from avs_jax.inference.expression_video import (
    EXPRESSIONS_AT_ONCE,
    found_in_frame,
    make_scored,
    score_expressions,
    window_inputs,
)
from avs_jax.inference.predictor import Predictor
from avs_jax.inference.side_by_side import ahead, behind
from avs_jax.spec import SAMPLE_RATE
from avs_jax.task import Task


def tokens_of(task: Task, expression: Expression) -> Tokens:
    """The tokens of an expression; InputError if it cannot have any."""
    return task.rows.tokens(clean(expression.text), f"{expression.video}, {expression.id}")


def predict_frames(
    predictor: Predictor,
    videos: VideoSet,
    expressions: Sequence[Expression],
    output: pathlib.Path,
    score: Callable[..., dict[str, jax.Array]],
    threshold: float,
) -> None:
    """Writes the masks of some expressions of one video, and results.json.

    Args:
      expressions: at least one.
      output: folder, replaced as a whole at the end.
      score: (outputs, inputs, size=) -> pred, presence and fallback.
      threshold: of the masks.

    Raises:
      InputError: a frame cannot be read, or the model reads what the set does not have.
    """
    task, scored = predictor.task, make_scored(predictor, score)
    video, num_frames = expressions[0].video, predictor.config.data.num_frames
    tokens = [tokens_of(task, expression) for expression in expressions]
    found = [
        {"expression": e.id, "text": e.text, "is_cut": token.is_cut, "frames": []}
        for e, token in zip(expressions, tokens, strict=True)
    ]
    names, start, size = videos.frames[video], 0, (0, 0)
    with atomic_folder(output) as folder:
        for expression in expressions:
            (folder / expression.id).mkdir()
        with contextlib.ExitStack() as stack:
            later = stack.enter_context(behind())
            for frames in stack.enter_context(ahead(videos.windows(video, num_frames))):
                shown, size = names[start : start + len(frames)], frames.shape[1:3]
                silence = np.zeros((len(frames) * SAMPLE_RATE, 1), np.int16)
                name = f"{video} from frame {shown[0]}"
                inputs = window_inputs(task, name, frames, silence, SAMPLE_RATE)
                for first in range(0, len(tokens), EXPRESSIONS_AT_ONCE):
                    part = slice(first, first + EXPRESSIONS_AT_ONCE)
                    asked = _to_power_of_two(tokens[part])
                    result = score_expressions(predictor, scored, inputs, asked, size)
                    later(_write, folder, shown, found[part], result, threshold)
                start += len(frames)
        results = {
            "video": video,
            "size": {"width": size[1], "height": size[0]},
            "window_frames": num_frames,
            "sound": "none, the model gets silence",
            "expressions": found,
        }
        (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")


def _to_power_of_two(tokens: Sequence[Tokens]) -> list[Tokens]:
    """Repeats the last: videos with any number of expressions share a few compiled programs."""
    missing = (1 << (len(tokens) - 1).bit_length()) - len(tokens)
    return [*tokens, *[tokens[-1]] * missing]


def _write(
    folder: pathlib.Path,
    names: Sequence[str],
    expressions: Sequence[dict[str, Any]],
    result: Mapping[str, np.ndarray],
    threshold: float,
) -> None:
    """Writes the masks of a window's frames."""
    for i, expression in enumerate(expressions):
        for t, name in enumerate(names):
            mask, facts = found_in_frame(result, i, t, threshold)
            path = folder / expression["expression"] / f"{name}.png"
            Image.fromarray(mask.astype(np.uint8) * 255).save(path)
            expression["frames"].append({"frame": name, **facts})
