"""Prediction of task `ground` on your own videos: when each --text happens.

Features are made as config.data.features says, a row per clip of config.data.clip_seconds. --text
may be given several times. The output is

  results.json           per text: windows (start and end in seconds, score), best first, the
                         saliency of every clip, and cut_word_pieces, how many words or pieces at
                         the end of the text were not read, beyond config.data.max_words
  chart.png              saliency, windows and the sound over time
  best_0.mp4, ...        the best window of each text, with its sound
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from avs_jax.data.tokens import cut_note
from avs_jax.data.video_output import write_cut
from avs_jax.files import atomic_folder
from avs_jax.inference.clip_features import ClipFeatures, VideoFeatures
from avs_jax.inference.predictor import Predictor
from avs_jax.results.moment_figure import strip_chart
from avs_jax.results.visualize import save_png
from avs_jax.results.windows import PostProcess
from avs_jax.spec import InputError, UsageError
from avs_jax.task import stack_rows

DECIMALS = 4


def predict_moments(
    predictor: Predictor,
    path: str | os.PathLike,
    output: str | os.PathLike,
    post_process: PostProcess,
    text: Sequence[str] = (),
) -> list[str]:
    """Writes results.json, chart.png and a cut per text.

    Args:
      path: mp4, mov, webm: frames and sound.
      output: folder, replaced as a whole at the end.
      post_process: of windows and saliency.
      text: the queries.

    Returns:
      lines to print.

    Raises:
      InputError: no text, a text without words, or features that are not made here.
    """
    if not text:
        raise UsageError('--text is missing: what to look for, such as --text="the violin"')
    features = predictor.once("features", lambda: ClipFeatures(predictor.config))
    words = [features.words(query) for query in text]
    found = features.video(path, is_shown=True)
    queries = _predict(predictor, found, text, words, post_process)
    for query in queries:
        query["cut_word_pieces"] = features.num_cut(query["text"])
    clip_seconds, duration = predictor.config.data.clip_seconds, found.video.duration
    with atomic_folder(output) as folder:
        for i, query in enumerate(queries):
            query["cut"] = f"best_{i}.mp4"
            start, end = _at_least_a_clip(*query["windows"][0][:2], clip_seconds, duration)
            write_cut(folder / query["cut"], path, start, end)
        chart = strip_chart(queries, clip_seconds, duration, found.peaks, found.video.path.name)
        save_png(folder / "chart.png", chart)
        results = {
            "video": str(path),
            "duration_seconds": round(duration, 3),
            "clip_seconds": clip_seconds,
            "queries": queries,
        }
        (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    lines = [f"{output}: results.json, chart.png, {len(queries)} cut(s)"]
    for query in queries:
        start, end, score = query["windows"][0]
        note = cut_note(query["cut_word_pieces"], "data.max_words", predictor.config.data.max_words)
        lines.append(f"{query['text']}: {start:g} to {end:g} s, score {score:.2f}{note}")
    return lines


def _predict(
    predictor: Predictor,
    found: VideoFeatures,
    text: Sequence[str],
    words: Sequence[np.ndarray],
    post_process: PostProcess,
) -> list[dict[str, Any]]:
    """Windows and saliency of every text, as results.json has them."""
    rows, config = predictor.task.rows, predictor.config
    covered = len(found.frames) * config.data.clip_seconds  # spans are shares of it
    nothing = np.zeros((0, 0), np.float32)
    record = {
        "vid": found.video.path.name,
        "duration": covered,
        "clip_seconds": config.data.clip_seconds,
        "video": [found.frames],
        "audio": b"" if found.sound is None else found.sound,
        "energy": found.energy,
        "windows": nothing,
        "saliency_clips": (),
        "saliency": nothing,
        "ratings": nothing,
    }
    prepared = [
        rows.prepare(record | {"qid": str(i), "query": query, "text": word})
        for i, (query, word) in enumerate(zip(text, words, strict=True))
    ]
    inputs = predictor.task.inputs(stack_rows(prepared, rows.fields))
    outputs = predictor.arrays(inputs)
    queries = []
    for i, query in enumerate(text):
        windows = post_process.windows(outputs["pred_logits"][i], outputs["pred_spans"][i], covered)
        windows[:, :2] = windows[:, :2].clip(0, found.video.duration)
        saliency = post_process.saliency(outputs["saliency_scores"][i][: len(found.frames)])
        queries.append(
            {
                "text": query,
                "windows": windows.round(DECIMALS).tolist(),
                "saliency": saliency.round(DECIMALS).tolist(),
            }
        )
    return queries


def _at_least_a_clip(
    start: float, end: float, clip_seconds: float, duration: float
) -> tuple[float, float]:
    """A window of one clip or more within the video; rounding may have left an empty one."""
    if end - start < clip_seconds:
        start = max(0.0, min(start, duration - clip_seconds))
        end = min(start + clip_seconds, duration)
    return start, end


def complete_arrays(
    needs_audio: bool, arrays: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Checks a user's arrays for the sound.

    Args:
      needs_audio: the model has the sound's channels beside the video's.

    Returns:
      the inputs, and notes on assumed arrays.

    Raises:
      InputError: there is no sound and the model cannot do without.
    """
    if needs_audio and "audio" not in arrays:
        raise InputError(
            "audio is missing: the fusion 'concat' reads it beside the video, and this checkpoint "
            "was trained with it"
        )
    return dict(arrays), []
