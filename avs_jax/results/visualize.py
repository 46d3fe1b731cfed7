"""Pictures of clips: what the model saw, heard and answered, one column per frame.

Rows from top to bottom: frame, prediction, ground truth, optical flow, motion map, AMA's map,
log-mel of the frame's 0.96 s of sound. Rows without data are left out. numpy and pillow only.
"""

import base64
import functools
import html
import io
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from avs_jax.spec import IGNORE_LABEL

PREDICTION = (255, 140, 0)  # orange
TRUTH = (0, 190, 120)  # green; the two are told apart with any colour vision
BACKGROUND = (255, 255, 255)
INK = (30, 30, 30)
FAINT = (215, 215, 215)  # a cell without data
TILE = 160  # px, longer side of a frame in a picture
_GAP = 6
_LABEL_WIDTH = 92
_CAPTION_HEIGHT = 22
_HEADING_HEIGHT = 30
_FONT_SIZE = 13

# Anchors of colour maps that grow monotonically in lightness, so they survive grey printing.
_MAPS = {
    "heat": ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)),
    "sea": ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)),
}


def overlay(
    image: np.ndarray,
    mask: np.ndarray,
    color: tuple[int, int, int] = PREDICTION,
    opacity: float = 0.45,
    contour: int = 2,
) -> np.ndarray:
    """Tints a mask over an image and draws its contour, inside the mask.

    Args:
      image: uint8 [H, W, 3].
      mask: [h, w] of any size: bool, or float probability (cut at 0.5 after resizing to the image,
        so that its border is smooth).
      color: RGB of tint and contour.
      opacity: of the tint, 0..1; the contour is opaque.
      contour: width in px; 0 draws none.

    Returns:
      uint8 [H, W, 3].
    """
    mask = _resize_float(mask, image.shape[:2]) > 0.5
    result = image.astype(np.float32)
    tint = np.asarray(color, np.float32)
    result[mask] = (1 - opacity) * result[mask] + opacity * tint
    result[mask & ~_erode(mask, contour)] = tint
    return np.round(result).astype(np.uint8)


def overlay_classes(
    image: np.ndarray, classes: np.ndarray, palette: np.ndarray, opacity: float = 0.6
) -> np.ndarray:
    """Tints each class of a segmentation in its colour; background (0) and unknown are left.

    Args:
      image: uint8 [H, W, 3].
      classes: integers [h, w] of any size; 255 is unknown.
      palette: uint8 [K, 3], RGB of the classes.

    Returns:
      uint8 [H, W, 3].
    """
    for index in np.setdiff1d(classes, (0, IGNORE_LABEL)):
        image = overlay(image, classes == index, palette[index], opacity)
    return image


def color_map(values: np.ndarray, name: str = "heat", high: float | None = None) -> np.ndarray:
    """Colours of a map, black or dark at 0.

    Args:
      values: float [H, W], not negative.
      name: "heat" or "sea".
      high: the value of the brightest colour; the map's maximum when not given.

    Returns:
      uint8 [H, W, 3].
    """
    if name not in _MAPS:
        raise ValueError(f"color map {name!r}: expected one of {sorted(_MAPS)}")
    values = np.nan_to_num(np.asarray(values, np.float32))
    high = float(values.max()) if high is None else high
    position = np.clip(values / max(high, 1e-12), 0, 1)
    anchors = np.asarray(_MAPS[name], np.float32)
    places = np.linspace(0, 1, len(anchors))
    channels = [np.interp(position, places, anchors[:, c]) for c in range(3)]
    return np.round(np.stack(channels, axis=-1)).astype(np.uint8)


def flow_colors(flow: np.ndarray, high: float | None = None) -> np.ndarray:
    """Optical flow in the colours of the Middlebury benchmark: hue is direction, white is rest.

    Right is red, down yellow, left cyan and up blue-violet; the paler, the slower. Beyond `high`
    colours are darkened instead. Source: Baker et al., A Database and Evaluation Methodology for
    Optical Flow (ICCV 2007), whose wheel has 55 colours.

    Args:
      flow: (u, v) float [H, W, 2]; what is not finite counts as rest.
      high: length of the vectors with full colour; the longest one's when not given.

    Returns:
      uint8 [H, W, 3].
    """
    u, v = np.moveaxis(np.nan_to_num(np.asarray(flow, np.float64), posinf=0, neginf=0), -1, 0)
    length = np.hypot(u, v)
    length /= max(float(length.max()) if high is None else high, 1e-12)
    position = (np.arctan2(-v, -u) / np.pi + 1) / 2 * (len(_WHEEL) - 1)
    index = np.arange(len(_WHEEL) + 1)
    wheel = np.concatenate([_WHEEL, _WHEEL[:1]])
    hue = np.stack([np.interp(position, index, wheel[:, c]) for c in range(3)], axis=-1)
    length = length[..., None]
    colors = np.where(length <= 1, 1 - length * (1 - hue), 0.75 * hue)
    return np.floor(255 * colors).astype(np.uint8)


def _color_wheel() -> np.ndarray:
    """Hues in 0..1, [55, 3]: ramps between six corners of the RGB cube, of lengths to suit eyes."""
    corners = np.array([(1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 1, 1), (0, 0, 1), (1, 0, 1)])
    ramps = []
    for i, steps in enumerate((15, 6, 4, 11, 13, 6)):
        share = np.floor(255 * np.arange(steps)[:, None] / steps) / 255
        start, end = corners[i], corners[(i + 1) % 6]
        ramps.append(start + (end - start) * share)
    return np.concatenate(ramps)


_WHEEL = _color_wheel()


def log_mel_picture(log_mel: np.ndarray, low: float = -4.6, high: float = 2.0) -> np.ndarray:
    """A log-mel as a picture: time to the right, low frequencies at the bottom.

    Args:
      log_mel: float [96, 64] (time, band), natural logarithms.
      low: the darkest value; log(0.01), silence, by default.
      high: the brightest.

    Returns:
      uint8 [64, 96, 3].
    """
    return color_map(np.asarray(log_mel).T[::-1] - low, "sea", high=high - low)


def clip_picture(
    frames: np.ndarray,
    prob: np.ndarray,
    labels: np.ndarray | None = None,
    log_mel: np.ndarray | None = None,
    motion: np.ndarray | None = None,
    motion_weight: np.ndarray | None = None,
    flow: np.ndarray | None = None,
    titles: Sequence[str] | None = None,
    heading: str = "",
    palette: np.ndarray | None = None,
) -> np.ndarray:
    """One clip as a grid, a column per frame and a row per kind of information.

    Args:
      frames: uint8 [T, H, W, 3].
      prob: float [T, S, S], probability of the object; tinted where above 0.5.
      labels: uint8 [T, S, S], ground truth; a frame that is wholly unknown (255) is left grey.
      log_mel: float [T, 96, 64].
      motion: float [T, H, W] or [T, H, W, 1], not negative, or (u, v) [T, H, W, 2], of which the
        length is shown; one scale for the clip.
      motion_weight: float [T, g, g], AMA's map, not negative; one scale for the clip.
      flow: (u, v) float [T, H, W, 2], in colours; one scale for the clip. The motion, where that
        is (u, v), when not given.
      titles: T captions, one over each column; "0 s", "1 s", ... when not given.
      heading: a line over the grid; none if empty.
      palette: uint8 [K, 3], RGB of classes; `prob` then holds classes, integers [T, S, S].

    Returns:
      uint8 [height, width, 3].
    """
    num_frames = len(frames)
    titles = [f"{t} s" for t in range(num_frames)] if titles is None else list(titles)
    given = dict(prob=prob, labels=labels, log_mel=log_mel, motion=motion)
    given |= dict(motion_weight=motion_weight, flow=flow, titles=titles)
    for name, value in given.items():
        if value is not None and len(value) != num_frames:
            raise ValueError(f"{name}: {len(value)} for a clip of {num_frames} frames")
    height, width = _tile_size(frames.shape[1:3])
    small = [_resize_image(frame, (height, width)) for frame in frames]

    rows = [("frame", small)]
    paint = overlay if palette is None else functools.partial(overlay_classes, palette=palette)
    rows.append(("prediction", [paint(f, p) for f, p in zip(small, prob, strict=True)]))
    if labels is not None:
        truth = [_truth(f, x, palette) for f, x in zip(small, labels, strict=True)]
        rows.append(("ground truth", truth))
    if motion is not None and np.shape(motion)[3:] == (2,):
        flow = motion if flow is None else flow
        motion = np.linalg.norm(np.asarray(motion, np.float32), axis=-1)
    if flow is not None:
        rows.append(("flow", _flow_tiles(np.asarray(flow, np.float32), (height, width))))
    if motion is not None:
        maps = np.asarray(motion, np.float32).reshape(np.shape(motion)[:3])
        rows.append(("motion", _map_tiles(maps, (height, width))))
    if motion_weight is not None:
        rows.append(("AMA map", _map_tiles(motion_weight, (height, width))))
    if log_mel is not None:
        strip = (round(width * 64 / 96), width)
        rows.append(("sound", [_resize_image(log_mel_picture(m), strip) for m in log_mel]))
    return _grid(rows, titles, heading)


def save_page(path: str | os.PathLike, heading: str, pictures: Mapping[str, np.ndarray]) -> None:
    """Writes pictures, by name, as one HTML page that needs no other file.

    Args:
      heading: of the page; plain text, as are the names.
      pictures: uint8 [H, W, 3] each.
    """
    parts = []
    for name, picture in pictures.items():
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "PNG")
        data = base64.b64encode(file.getvalue()).decode()
        name = html.escape(name)
        parts.append(f'<h2>{name}</h2>\n<img alt="{name}" src="data:image/png;base64,{data}">')
    title = html.escape(heading)
    page = [
        "<!DOCTYPE html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
        "<style>body { font-family: sans-serif; margin: 2em } img { max-width: 100% }</style>",
        f"</head><body>\n<h1>{title}</h1>",
        *parts,
        "</body></html>",
    ]
    pathlib.Path(path).write_text("\n".join(page) + "\n", encoding="utf-8")


def save_png(path, picture: np.ndarray) -> None:
    """Writes uint8 [H, W, 3] as PNG."""
    Image.fromarray(picture).save(path)


def _truth(frame, labels, palette):
    if np.all(labels == IGNORE_LABEL):
        return np.full_like(frame, FAINT)
    if palette is not None:
        return overlay_classes(frame, labels, palette)
    return overlay(frame, (labels > 0) & (labels != IGNORE_LABEL), TRUTH)


def _flow_tiles(flow, size):
    high = float(np.hypot(flow[..., 0], flow[..., 1]).max())
    return [_resize_image(flow_colors(frame, high), size) for frame in flow]


def _map_tiles(maps, size):
    maps = [_resize_float(m, size) for m in np.asarray(maps, np.float32)]
    high = max(float(m.max()) for m in maps)
    return [color_map(np.maximum(m, 0), "heat", high) for m in maps]


def _grid(rows, titles, heading) -> np.ndarray:
    width = rows[0][1][0].shape[1]
    heights = [tiles[0].shape[0] for _, tiles in rows]
    top = _GAP + (_HEADING_HEIGHT if heading else 0)
    columns = [_LABEL_WIDTH + t * (width + _GAP) for t in range(len(titles))]
    total_height = top + _CAPTION_HEIGHT + sum(h + _GAP for h in heights)
    canvas = Image.new("RGB", (columns[-1] + width + _GAP, total_height), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(_FONT_SIZE)
    if heading:
        big = ImageFont.load_default(_FONT_SIZE + 3)
        middle = _GAP + _HEADING_HEIGHT // 2
        draw.text((_GAP + 2, middle), heading, fill=INK, font=big, anchor="lm")
    for x, title in zip(columns, titles, strict=True):
        middle = top + _CAPTION_HEIGHT // 2
        draw.text((x + width // 2, middle), title, fill=INK, font=font, anchor="mm")
    y = top + _CAPTION_HEIGHT
    for (name, tiles), height in zip(rows, heights, strict=True):
        place = (_LABEL_WIDTH - _GAP - 2, y + height // 2)
        draw.text(place, name, fill=INK, font=font, anchor="rm")
        for x, tile in zip(columns, tiles, strict=True):
            canvas.paste(Image.fromarray(tile), (x, y))
        y += height + _GAP
    return np.asarray(canvas)


def _tile_size(size):
    scale = TILE / max(size)
    return tuple(max(1, round(s * scale)) for s in size)


def _resize_image(image, size):
    resample = Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(image).resize(size[::-1], resample, reducing_gap=3.0))


def _resize_float(array, size):
    image = Image.fromarray(np.ascontiguousarray(array, np.float32))
    return np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR))


def _erode(mask, steps):
    """Removes `steps` px from the border; the edge of the image is no border."""
    for _ in range(steps):
        padded = np.pad(mask, 1, mode="edge")
        neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
        mask = mask & np.logical_and.reduce(neighbours)
    return mask
