"""Prediction of task `classify` on your own videos: what sounds in every window.

A video is split into windows of config.data.num_frames seconds. The output is

  results.json    per window: the classes and their scores, from frames and sound, and from each
"""

import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from avs_jax.data.video import probe, read_windows, tracked_windows
from avs_jax.files import atomic_folder
from avs_jax.inference.predictor import Predictor

NUM_SHOWN = 5
DECIMALS = 4
SHOWN = {"classes": "logits", "by_frames": "frames_logits", "by_sound": "audio_logits"}


def predict_classes(
    predictor: Predictor,
    path: str | os.PathLike,
    output: str | os.PathLike,
    names: Sequence[str],
    multi_label: bool,
) -> list[str]:
    """Writes results.json of a video; returns lines to print.

    Args:
      names: of the classes; those without one have their number.
      multi_label: whether a clip may have several classes, each with a probability of its own.
    """
    video, windows, lines = probe(path), [], []
    read = read_windows(path, predictor.config.data.num_frames)
    for frames, waveform, start in tracked_windows(read, video):
        record = {
            "clip_id": f"{video.path.name} from second {start}",
            "frames": list(frames),
            "waveform": waveform,
            "sample_rate": video.sample_rate,
        }
        row = predictor.task.rows.prepare(record, None)
        inputs = {name: np.asarray(x)[None] for name, x in predictor.task.inputs(row).items()}
        found = predictor.arrays(inputs)
        window: dict[str, Any] = {"second": start, "seconds": len(frames)}
        for key, name in SHOWN.items():
            window[key] = _best(_probabilities(found[name][0], multi_label), names)
        weights = found["modality_weights"][0]
        window["weight_of_frames"] = round(float(weights[0]), DECIMALS)
        windows.append(window)
        best, score = next(iter(window["classes"].items()))
        lines.append(f"from second {start}: {best} ({score:.3f})")
    with atomic_folder(output) as folder:
        results = {"video": str(path), "windows": windows}
        (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    return [*lines, f"{output}: results.json"]


def _probabilities(logits: np.ndarray, multi_label: bool) -> np.ndarray:
    if multi_label:
        return 1 / (1 + np.exp(-np.float64(logits)))
    shifted = np.exp(np.float64(logits) - logits.max())
    return shifted / shifted.sum()


def _best(scores: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    order = np.argsort(-scores, kind="stable")[:NUM_SHOWN]
    return {
        names[k] if k < len(names) else str(k): round(float(scores[k]), DECIMALS) for k in order
    }
