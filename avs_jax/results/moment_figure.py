"""A strip chart of queries on a video: saliency, windows and sound over time.

One panel per query: a bar per clip for its saliency, above it the predicted windows, darker with
their score, and the annotated windows where they are known. The last panel is the sound.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from avs_jax.results.visualize import PREDICTION, TRUTH

NUM_SHOWN = 5  # windows of a query
_INCHES = (9.0, 1.9, 1.1)  # width of the chart, height of a query's panel, of the sound's
_DPI = 100


def strip_chart(
    queries: Sequence[Mapping[str, Any]],
    clip_seconds: float,
    duration: float,
    peaks: np.ndarray | None = None,
    heading: str = "",
) -> np.ndarray:
    """Draws predictions.

    Args:
      queries: per query `text`, `windows` [n, 3] (start, end, score; best first), `saliency`
        [clips] and, where known, `truth` [m, 2].
      clip_seconds: that a value of the saliency stands for.
      duration: of the video, in seconds.
      peaks: amplitudes of the sound, 0..1, evenly spaced over the video; None: no such panel.
      heading: a line above.

    Returns:
      uint8 [height, width, 3].
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, panel, strip = _INCHES
    heights = [panel] * len(queries) + ([] if peaks is None else [strip])
    figure = Figure((width, sum(heights) + 0.7), dpi=_DPI, layout="constrained")
    axes = figure.subplots(
        len(heights), squeeze=False, sharex=True, gridspec_kw={"height_ratios": heights}
    )[:, 0]
    for axis, query in zip(axes, queries, strict=False):
        _draw_query(axis, query, clip_seconds, duration)
    if peaks is not None:
        time = (np.arange(len(peaks)) + 0.5) * duration / max(1, len(peaks))
        axes[-1].fill_between(time, -peaks, peaks, color="0.35", linewidth=0)
        axes[-1].set(ylabel="sound", yticks=[])
    axes[-1].set(xlabel="seconds", xlim=(0, duration))
    if heading:
        figure.suptitle(heading, fontsize=9, parse_math=False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def _draw_query(axis, query: Mapping[str, Any], clip_seconds: float, duration: float) -> None:
    saliency = np.asarray(query["saliency"], float)
    start = np.arange(len(saliency)) * clip_seconds
    length = np.minimum(start + clip_seconds, duration) - start
    low, high = saliency.min(), saliency.max()
    span = max(high - low, 1e-6)
    floor = low - 0.1 * span  # saliency ranks clips; its zero means nothing
    axis.bar(start, saliency - floor, length, floor, align="edge", color="0.75", edgecolor="white")
    predicted = np.array(PREDICTION) / 255
    place, thick = high + 0.12 * span, 0.1 * span
    shown = query["windows"][:NUM_SHOWN]
    for begin, end, score in reversed(shown):
        color = (*predicted, float(np.clip(score, 0.08, 1)))
        axis.broken_barh([(begin, end - begin)], (place, thick), facecolor=color)
    top = place + thick
    if len(query.get("truth", ())):
        bars = [(begin, end - begin) for begin, end in query["truth"]]
        axis.broken_barh(bars, (top + 0.04 * span, thick), facecolor=np.array(TRUTH) / 255)
        top += thick + 0.04 * span
    if len(shown):
        begin, end, score = shown[0]
        label = f"{begin:g} to {end:g} s, {score:.2f}"
        axis.text((begin + end) / 2, top, label, ha="center", va="bottom", fontsize=8)
    axis.set(ylim=(floor, top + 0.25 * span), ylabel="saliency")
    axis.set_title(query["text"], fontsize=9, loc="left", parse_math=False)
