"""Figures of clips: what the model saw, heard and answered, one column per frame.

Rows from top to bottom: frame, prediction (of each model), ground truth, optical flow, motion map,
AMA's map, evidence of synchrony (red for, blue against), log-mel of the frame's 0.96 s of sound.
Rows without data are omitted.

Matplotlib is imported only when a figure is drawn, on its Agg canvas, which needs no display.
"""

import functools
import os
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image
from scipy import ndimage

from avs_jax.files import write_atomically
from avs_jax.results import html_page
from avs_jax.spec import IGNORE_LABEL

PREDICTION = (255, 140, 0)  # orange
TRUTH = (0, 190, 120)  # green; color-blind readers can tell the two apart
FAINT = (215, 215, 215)  # a cell without data
TILE = 160  # px, longer side of a frame in a figure
GAP = 6  # px between tiles
_MARGINS = (100, 8, 54, 8)  # px left, right, above and below the tiles
_LINE = 17  # px per line of a title
_DPI = 100


def overlay(
    image: np.ndarray,
    mask: np.ndarray,
    color: tuple[int, int, int] = PREDICTION,
    opacity: float = 0.45,
    contour: int = 2,
) -> np.ndarray:
    """Tints a mask over an image and draws its contour inside the mask.

    Args:
      image: uint8 [H, W, 3], as the result.
      mask: [h, w] of any size: bool, or float probability (thresholded at 0.5 after resizing to
        the image, so its border is smooth).
      opacity: of the tint, 0..1; the contour is opaque.
      contour: width in px; 0 draws none.
    """
    mask = _resize_float(mask, image.shape[:2]) > 0.5
    result = image.astype(np.float32)
    tint = np.asarray(color, np.float32)
    result[mask] = (1 - opacity) * result[mask] + opacity * tint
    if contour:  # the edge of the image is no contour
        result[mask & ~ndimage.binary_erosion(mask, iterations=contour, border_value=1)] = tint
    return np.round(result).astype(np.uint8)


def overlay_classes(
    image: np.ndarray, classes: np.ndarray, palette: np.ndarray, opacity: float = 0.6
) -> np.ndarray:
    """Tints each class [h, w] in its color of palette [K, 3], except background and unknown."""
    for index in np.setdiff1d(classes, (0, IGNORE_LABEL)):
        image = overlay(image, classes == index, palette[index], opacity)
    return image


def color_map(values: np.ndarray, name: str = "inferno", high: float | None = None) -> np.ndarray:
    """A map [H, W] in Matplotlib's colors, from 0 (darkest) to `high`, by default its maximum.

    NaN counts as 0.
    """
    from matplotlib import colormaps

    values = np.nan_to_num(np.asarray(values, np.float32))
    high = float(values.max()) if high is None else high
    return colormaps[name](values / max(high, 1e-12), bytes=True)[..., :3]


def flow_colors(flow: np.ndarray, high: float | None = None) -> np.ndarray:
    """Optical flow as colors: the hue is the direction, the saturation the length, rest is white.

    Right is red, down yellow-green, left cyan, up violet. (u, v) [H, W, 2] that are not finite
    count as rest. Vectors of length `high` and more have full color, by default the longest.
    """
    from matplotlib.colors import hsv_to_rgb

    u, v = np.moveaxis(np.nan_to_num(np.asarray(flow, np.float64), posinf=0, neginf=0), -1, 0)
    length = np.hypot(u, v)
    length = length / max(float(length.max()) if high is None else high, 1e-12)
    hue = np.arctan2(v, u) / (2 * np.pi) % 1
    hsv = np.stack([hue, np.minimum(length, 1), np.ones_like(hue)], axis=-1)
    return np.round(255 * hsv_to_rgb(hsv)).astype(np.uint8)


def log_mel_picture(log_mel: np.ndarray, low: float = -4.6, high: float = 2.0) -> np.ndarray:
    """A log-mel [96, 64] as an image [64, 96, 3]: time to the right, low frequencies at the bottom.

    From log(0.01), silence, which is darkest.
    """
    above = np.maximum(np.asarray(log_mel).T[::-1] - low, 0)
    return color_map(above, "viridis", high=high - low)


def clip_picture(
    frames: np.ndarray,
    prob: np.ndarray,
    labels: np.ndarray | None = None,
    log_mel: np.ndarray | None = None,
    motion: np.ndarray | None = None,
    motion_weight: np.ndarray | None = None,
    evidence: np.ndarray | None = None,
    flow: np.ndarray | None = None,
    titles: Sequence[str] | None = None,
    heading: str = "",
    palette: np.ndarray | None = None,
    others: Mapping[str, np.ndarray] | None = None,
    maps: Mapping[str, np.ndarray] | None = None,
) -> np.ndarray:
    """One clip as a grid uint8 [height, width, 3], a column per frame and a row per kind of data.

    Args:
      frames: uint8 [T, H, W, 3].
      prob: float [T, S, S], probability of the object; tinted where above 0.5.
      labels: uint8 [T, S, S], ground truth; a frame that is entirely unknown (255) is gray.
      log_mel: float [T, 96, 64].
      motion: float [T, H, W] or [T, H, W, 1], not negative, or (u, v) [T, H, W, 2], whose length
        is shown; one scale for the clip.
      motion_weight: float [T, g, g], AMA's map, not negative; one scale for the clip.
      evidence: float [T, g, g], of synchrony, of any sign; one scale for the clip.
      flow: (u, v) float [T, H, W, 2]; one scale for the clip. By default the motion, if it is
        (u, v).
      titles: T captions of a line or more, one above each column; "0 s", "1 s", ... by default.
      palette: uint8 [K, 3], RGB of classes; `prob` then holds classes, integers [T, S, S].
      others: name of a row -> prediction of another model, like `prob`.
      maps: name of a row -> map in 0..1, float [T, h, w].
    """
    num_frames = len(frames)
    titles = [f"{t} s" for t in range(num_frames)] if titles is None else list(titles)
    given = dict(prob=prob, labels=labels, log_mel=log_mel, motion=motion)
    given |= dict(motion_weight=motion_weight, evidence=evidence, flow=flow, titles=titles)
    given |= (others or {}) | (maps or {})
    for name, value in given.items():
        if value is not None and len(value) != num_frames:
            raise ValueError(f"{name}: {len(value)} for a clip of {num_frames} frames")
    height, width = _tile_size(frames.shape[1:3])
    small = [_resize_image(frame, (height, width)) for frame in frames]

    rows = [("frame", small)]
    paint = overlay if palette is None else functools.partial(overlay_classes, palette=palette)
    for name, found in {"prediction": prob, **(others or {})}.items():
        rows.append((name, [paint(f, p) for f, p in zip(small, found, strict=True)]))
    if labels is not None:
        truth = [_truth(f, x, palette) for f, x in zip(small, labels, strict=True)]
        rows.append(("ground truth", truth))
    if motion is not None and np.shape(motion)[3:] == (2,):
        flow = motion if flow is None else flow
        motion = np.linalg.norm(np.asarray(motion, np.float32), axis=-1)
    if flow is not None:
        rows.append(("flow", _flow_tiles(np.asarray(flow, np.float32), (height, width))))
    if motion is not None:
        strengths = np.asarray(motion, np.float32).reshape(np.shape(motion)[:3])
        rows.append(("motion", _map_tiles(strengths, (height, width))))
    if motion_weight is not None:
        rows.append(("AMA map", _map_tiles(motion_weight, (height, width))))
    for name, found in (maps or {}).items():
        rows.append((name, [color_map(_resize_float(m, (height, width)), high=1) for m in found]))
    if evidence is not None:
        rows.append(("evidence", _signed_tiles(evidence, (height, width))))
    if log_mel is not None:
        strip = (round(width * 64 / 96), width)
        rows.append(("sound", [_resize_image(log_mel_picture(m), strip) for m in log_mel]))
    return _grid(rows, titles, heading)


def save_page(
    path: str | os.PathLike,
    heading: str,
    pictures: Mapping[str, np.ndarray],
    texts: Mapping[str, str] | None = None,
    sounds: Mapping[str, bytes] | None = None,
    introduction: Sequence[str] = (),
) -> None:
    """Writes named pictures, uint8 [H, W, 3], as one HTML page that needs no other file.

    Args:
      texts: a line under the names of some pictures.
      sounds: WAV files that play under some pictures.
      introduction: lines under the heading.
    """
    parts = [html_page.paragraph(line) for line in introduction]
    for name, picture in pictures.items():
        text, sound = (texts or {}).get(name), (sounds or {}).get(name)
        parts.append(html_page.figure(name, picture, text, sound))
    html_page.save(path, heading, parts)


def save_png(path: str | os.PathLike, picture: np.ndarray) -> None:
    """Writes uint8 [H, W, 3] as PNG."""
    write_atomically(path, html_page.png(picture))


def _truth(frame, labels, palette):
    if np.all(labels == IGNORE_LABEL):
        return np.full_like(frame, FAINT)
    if palette is not None:
        return overlay_classes(frame, labels, palette)
    return overlay(frame, (labels > 0) & (labels != IGNORE_LABEL), TRUTH)


def _flow_tiles(flow, size):
    flow = np.nan_to_num(flow, posinf=0, neginf=0)
    high = float(np.hypot(flow[..., 0], flow[..., 1]).max())
    return [_resize_image(flow_colors(frame, high), size) for frame in flow]


def _map_tiles(maps, size):
    maps = [_resize_float(m, size) for m in np.asarray(maps, np.float32)]
    high = max(float(m.max()) for m in maps)
    return [color_map(np.maximum(m, 0), high=high) for m in maps]


def _signed_tiles(maps, size):
    maps = [_resize_float(m, size) for m in np.asarray(maps, np.float32)]
    high = max(max(float(np.abs(m).max()) for m in maps), 1e-12)
    return [color_map((m / high + 1) / 2, "RdBu_r", high=1.0) for m in maps]


def _grid(rows, titles, heading) -> np.ndarray:
    """Draws the tiles pixel by pixel, in one axes whose ticks name rows and columns."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    gap = [(0, GAP), (0, GAP), (0, 0)]
    bands = [
        np.concatenate([np.pad(tile, gap, constant_values=255) for tile in tiles], axis=1)
        for _, tiles in rows
    ]
    image = np.concatenate(bands)[:-GAP, :-GAP]
    (height, width), (left, right, above, below) = image.shape[:2], _MARGINS
    above += _LINE * max(title.count("\n") for title in titles)
    total_width, total_height = left + width + right, above + height + below
    # Matplotlib before 3.11 truncates inches * dpi to pixels, so rounding could lose one.
    figure = Figure([(pixels + 0.1) / _DPI for pixels in (total_width, total_height)], dpi=_DPI)
    axes = figure.add_axes(
        (left / total_width, below / total_height, width / total_width, height / total_height)
    )
    axes.imshow(image, interpolation="nearest", aspect="auto")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    tops = np.cumsum([0, *(len(band) for band in bands)])
    centers = [top + (len(band) - GAP) / 2 for top, band in zip(tops, bands, strict=False)]
    axes.set_yticks(centers, [name for name, _ in rows])
    step = rows[0][1][0].shape[1] + GAP
    axes.set_xticks([t * step + (step - GAP) / 2 for t in range(len(titles))], titles)
    figure.text(GAP / total_width, 1 - 16 / total_height, heading, va="center", parse_math=False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def _tile_size(size):
    scale = TILE / max(size)
    return tuple(max(1, round(s * scale)) for s in size)


def _resize_image(image, size):
    resample = Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(image).resize(size[::-1], resample, reducing_gap=3.0))


def _resize_float(array, size):
    image = Image.fromarray(np.ascontiguousarray(array, np.float32))
    return np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR))
