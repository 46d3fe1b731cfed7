"""Figures over the seconds of a video: a chart of areas and scores, and strips of maps.

Predictions on videos report, per second, the area (fraction of the frame in the mask) and the score
(mean probability of its pixels). A chart compares several conditions, such as other sounds.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from avs_jax.results.visualize import color_map

STRIP_HEIGHT = 120  # px
_INCHES = (9.0, 4.2)  # of the chart
_DPI = 100
_BINS = 600  # of the sound


def second_chart(
    seconds: Mapping[str, Sequence[Mapping[str, Any]]], waveform: np.ndarray, sample_rate: int
) -> np.ndarray:
    """Draws area, score and sound over time.

    Args:
      seconds: condition -> per second "area" and "score".
      waveform: int16 [n, channels].

    Returns:
      uint8 [height, width, 3].
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(_INCHES, dpi=_DPI, layout="constrained")
    area, score, sound = figure.subplots(3, sharex=True, height_ratios=(2, 2, 1))
    for axis, measure, scale in ((area, "area", 100), (score, "score", 1)):
        for condition, rows in seconds.items():
            values = [scale * row[measure] for row in rows]
            edges = np.arange(len(values) + 1)
            axis.stairs(values, edges, label=condition, baseline=None, linewidth=2)
        axis.set_ylim(bottom=0)
    area.set_ylabel("area, %")
    score.set_ylabel("score")
    figure.legend(*area.get_legend_handles_labels(), loc="outside lower center", ncols=len(seconds))
    mono = np.abs(waveform.astype(np.float32)).max(axis=1)
    peaks = np.array([part.max() for part in np.array_split(mono, min(_BINS, len(mono)))]) / 32768
    time = (np.arange(len(peaks)) + 0.5) * len(mono) / sample_rate / len(peaks)
    sound.fill_between(time, -peaks, peaks, color="0.35", linewidth=0)
    end = max(len(rows) for rows in seconds.values())
    sound.set(ylabel="sound", yticks=[], xlabel="seconds", xlim=(0, end))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def map_strips(
    frames: Sequence[np.ndarray], maps: Mapping[str, np.ndarray]
) -> list[tuple[np.ndarray, str]]:
    """Draws frames side by side, and below each other the maps of the same seconds.

    Args:
      frames: uint8 [H, W, 3] each, one per second.
      maps: name -> [t, h, w], t at least the number of frames; negative values count as 0.

    Returns:
      (uint8 [STRIP_HEIGHT, width, 3], caption) of the frames and of every map.
    """
    height, width = frames[0].shape[:2]
    size = max(1, round(STRIP_HEIGHT * width / height)), STRIP_HEIGHT

    def strip(images) -> np.ndarray:
        resized = [np.asarray(Image.fromarray(image).resize(size)) for image in images]
        return np.concatenate(resized, axis=1)

    strips = [(strip(frames), "frames, one per second")]
    for name, values in maps.items():
        high = float(values.max())
        colors = [color_map(x, high=high) for x in values[: len(frames)]]
        strips.append((strip(colors), f"{name}, from 0 (dark) to {high:.3g}"))
    return strips
