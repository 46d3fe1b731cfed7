"""HTML pages that need no other file and no network: tables, charts, figures, sounds.

The parts are strings of HTML; `save` joins them under a heading.
"""

import base64
import html
import io
import os
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from avs_jax.files import write_atomically

STYLE = """
body { font-family: sans-serif; margin: 2em; max-width: 80em }
img, svg { max-width: 100% }
table { border-collapse: collapse; margin: 1em 0 }
th, td { padding: .2em .8em; border-bottom: 1px solid #ddd; text-align: right }
th.name, td.name { text-align: left }
svg text { font: 11px sans-serif }
"""
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
CHART = (640, 240)  # px
MARGINS = (64, 12, 10, 26)  # px left, right, above and below the lines
MAX_POINTS = 400  # per line


def save(path: str | os.PathLike, heading: str, parts: Sequence[str]) -> None:
    """Writes a page."""
    title = html.escape(heading)
    page = [
        "<!DOCTYPE html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
        f"<style>{STYLE}</style>",
        f"</head><body>\n<h1>{title}</h1>",
        *parts,
        "</body></html>",
    ]
    write_atomically(path, "\n".join(page) + "\n")


def heading(text: str) -> str:
    return f"<h2>{html.escape(text)}</h2>"


def paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def bullets(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


def table(rows: Sequence[Sequence[str]], num_names: int = 1) -> str:
    """A header and rows; the first `num_names` columns are names, the others numbers."""
    lines = []
    for i, row in enumerate(rows):
        tag = "td" if i else "th"
        cells = (
            f'<{tag} class="name">{html.escape(cell)}</{tag}>'
            if column < num_names
            else f"<{tag}>{html.escape(cell)}</{tag}>"
            for column, cell in enumerate(row)
        )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def figure(
    name: str, picture: np.ndarray, text: str | None = None, sound: bytes | None = None
) -> str:
    """A named picture, uint8 [H, W, 3], a line under its name, and a WAV file that plays."""
    data, name = base64.b64encode(png(picture)).decode(), html.escape(name)
    parts = [f"<h3>{name}</h3>"]
    parts += [paragraph(text)] if text else []
    parts.append(f'<img alt="{name}" src="data:image/png;base64,{data}">')
    if sound:
        encoded = base64.b64encode(sound).decode()
        parts.append(f'<p><audio controls src="data:audio/wav;base64,{encoded}"></audio></p>')
    return "\n".join(parts)


def png(picture: np.ndarray) -> bytes:
    """uint8 [H, W, 3] as the bytes of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def chart(title: str, lines: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Lines over the step, as SVG: name -> (step, value), ...; not finite values are left out."""
    points = {name: _drawable(line) for name, line in lines.items()}
    points = {name: line for name, line in points.items() if len(line)}
    if not points:
        return ""
    every = np.concatenate(list(points.values()))
    low, high = every.min(axis=0), every.max(axis=0)
    span = np.where(high > low, high - low, 1.0)
    (width, height), (left, right, above, below) = CHART, MARGINS
    inner = np.array([width - left - right, height - above - below])

    def place(xy: np.ndarray) -> np.ndarray:
        unit = (xy - low) / span
        return np.stack([left + unit[:, 0] * inner[0], above + (1 - unit[:, 1]) * inner[1]], axis=1)

    parts = [f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}">']
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y, x = above + (1 - share) * inner[1], left + share * inner[0]
        value, step = low + share * span
        parts.append(f'<path d="M{left} {y:.1f}h{inner[0]}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{step:.4g}</text>')
        parts.append(f'<text x="{x:.1f}" y="{height - 8}" text-anchor="middle">{value:.0f}</text>')
    legend = []
    for i, (name, line) in enumerate(points.items()):
        color, placed = COLORS[i % len(COLORS)], place(line)
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5">'
            f"<title>{html.escape(name)}</title></polyline>"
        )
        legend.append(f'<span style="color:{color}">&#9644; {html.escape(name)}</span>')
    return "\n".join(
        [f"<h3>{html.escape(title)}</h3>", *parts, "</svg>", f"<p>{' '.join(legend)}</p>"]
    )


def _drawable(line: Sequence[tuple[float, float]]) -> np.ndarray:
    """Float [n, 2], thinned to MAX_POINTS; the last point stays."""
    points = np.asarray(line, np.float64).reshape(-1, 2)
    points = points[np.isfinite(points).all(axis=1)]
    keep = np.linspace(0, len(points) - 1, min(len(points), MAX_POINTS)).round().astype(int)
    return points[keep]
