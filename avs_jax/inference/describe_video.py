"""Prediction of task `describe` on your own videos: words for what a mask shows.

--masks=FOLDER has indexed images 00000.png, .., one per second t of the video, for the frame at
t + config.data.frame_offset s, by default its first; the value k is object k. Each window of
config.data.num_frames seconds in which an object has pixels is described. The output is

  results.json    per object: windows with their words and score, and is_cut: the words end at
                  config.model.max_words, not where the model ended them; per second: the words
                  beside the file of its mask
"""

import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from avs_jax.data.input_files import read_image
from avs_jax.data.tokens import EOS
from avs_jax.data.video import probe, read_windows, tracked_windows
from avs_jax.files import atomic_folder
from avs_jax.inference.predictor import Predictor
from avs_jax.label_images import label_pixels
from avs_jax.spec import InputError

DECIMALS = 4


def predict_descriptions(
    predictor: Predictor,
    path: str | os.PathLike,
    output: str | os.PathLike,
    to_text: Callable[[Sequence[int]], str],
    masks: str | None = None,
) -> list[str]:
    """Writes results.json of a video; returns lines to print.

    Args:
      to_text: token ids to words.
      masks: the folder.

    Raises:
      InputError: no folder, or a mask is missing or of another size.
    """
    if not masks:
        raise InputError("--masks=FOLDER is missing: which pixels are to be described?")
    video, folder = probe(path), pathlib.Path(masks).expanduser()
    labels = [_read_mask(folder / f"{t:05d}.png", video) for t in range(video.num_seconds)]
    objects = sorted({int(k) for mask in labels for k in np.unique(mask)} - {0})
    windows: dict[int, list[dict[str, Any]]] = {k: [] for k in objects}
    seconds: list[dict[str, Any]] = []
    data = predictor.config.data
    read = read_windows(path, data.num_frames, data.frame_offset)
    for frames, waveform, start in tracked_windows(read, video):
        shown = labels[start : start + len(frames)]
        said = {}
        for k in objects:
            if not any((mask == k).any() for mask in shown):
                continue
            record = {
                "clip_id": f"{video.path.name} from second {start}",
                "frames": list(frames),
                "masks": [np.uint8(mask == k) for mask in shown],
                "waveform": waveform,
                "sample_rate": video.sample_rate,
            }
            row = predictor.task.rows.prepare(record, None)
            inputs = {name: np.asarray(x)[None] for name, x in predictor.task.inputs(row).items()}
            found = predictor.arrays(inputs)
            said[k] = to_text(found["words"][0].tolist())
            score = round(float(found["word_score"][0]), DECIMALS)
            is_cut = EOS not in found["words"][0]
            window = {"second": start, "text": said[k], "score": score, "is_cut": is_cut}
            windows[k].append(window)
        for t, mask in enumerate(shown, start):
            texts = {str(k): said[k] for k in said if (mask == k).any()}
            seconds.append({"second": t, "mask": str(folder / f"{t:05d}.png"), "objects": texts})
    with atomic_folder(output) as root:
        results = {"video": str(path), "objects": windows, "seconds": seconds}
        (root / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    lines = [f"object {k}: {rows[0]['text']}" for k, rows in windows.items() if rows]
    made = [window for rows in windows.values() for window in rows]
    if num_cut := sum(window["is_cut"] for window in made):
        limit = f"config.model.max_words = {predictor.config.model.max_words}"
        lines.append(f"{num_cut} of {len(made)} descriptions were cut, without an end: {limit}")
    return [*lines, f"{output}: results.json"]


def _read_mask(path: pathlib.Path, video: Any) -> np.ndarray:
    mask = label_pixels(read_image(path)[1])
    if mask.shape != (video.height, video.width):
        raise InputError(
            f"{path}: shape {mask.shape}, expected one number per pixel of "
            f"{video.height}x{video.width}"
        )
    return mask
