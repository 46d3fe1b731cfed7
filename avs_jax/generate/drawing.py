"""What generated frames are made of: sprites (an outline filled with a pattern) and backgrounds."""

import colorsys
from collections.abc import Callable

import numpy as np
from PIL import Image

from avs_jax.generate.categories import Category

SPRITE_SIZE = 96  # pixels per side of a sprite, before it is scaled into a frame


def outline_mask(outline: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Evaluates an outline: a bool mask at coordinates u (right) and v (down), each in -1..1."""
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    wide = np.maximum(np.abs(u), np.abs(v))
    narrow = np.minimum(np.abs(u), np.abs(v))
    masks: dict[str, Callable[[], np.ndarray]] = {
        "disk": lambda: radius < 0.95,
        "square": lambda: wide < 0.85,
        "ellipse": lambda: np.hypot(u / 0.98, v / 0.55) < 1,
        "cross": lambda: (narrow < 0.36) & (wide < 0.95),
        "ring": lambda: (radius > 0.42) & (radius < 0.97),
        "hexagon": lambda: radius * np.cos((angle % (np.pi / 3)) - np.pi / 6) < 0.82,
        "triangle": lambda: (v < 0.75) & (v > 1.9 * np.abs(u) - 0.95),
        "star": lambda: radius < 0.66 + 0.3 * np.cos(5 * angle + np.pi / 2),
        "gear": lambda: radius < 0.84 + 0.12 * np.sign(np.cos(9 * angle)),
        "drop": lambda: (
            (np.hypot(u, v - 0.35) < 0.6)
            | ((v < 0.35) & (v > -0.95) & (np.abs(u) < 0.46 * (v + 0.95)))
        ),
        "bar": lambda: (np.abs(v) < 0.4) & (np.abs(u) < 0.97),
        "crescent": lambda: (radius < 0.95) & (np.hypot(u - 0.5, v) > 0.62),
    }
    return masks[outline]()


def outline_share(outline: str) -> float:
    """The share of its bounding square that an outline covers."""
    return float(outline_mask(outline, *_sprite_grid()).mean())


def sprite(category: Category, rng: np.random.Generator) -> Image.Image:
    """Draws one object as an RGBA image; alpha is 0 outside the outline, color is not."""
    u, v = _sprite_grid()
    hue = (category.hue + rng.uniform(-0.03, 0.03)) % 1
    saturation, value = rng.uniform(0.7, 1.0), rng.uniform(0.7, 1.0)
    light = np.array(colorsys.hsv_to_rgb(hue, saturation, value))
    dark = np.array(colorsys.hsv_to_rgb(hue, saturation * 0.5, value * rng.uniform(0.3, 0.5)))
    mix = _pattern_value(category.pattern, u, v, rng)[..., None]
    rgb = light * (1 - mix) + dark * mix
    rgb = rgb * (1.0 - 0.15 * v[..., None])  # as if lit from above
    alpha = outline_mask(category.outline, u, v)[..., None]
    return Image.fromarray((np.concatenate([rgb.clip(0, 1), alpha], -1) * 255).astype(np.uint8))


def background(height: int, width: int, rng: np.random.Generator) -> Image.Image:
    """Draws an RGB texture of low saturation: blotches at three scales, grain, sometimes planks."""
    base = np.array(
        colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0, 0.25), rng.uniform(0.3, 0.75))
    )
    texture = rng.normal(0, 0.015, (height, width, 1))
    for cells, strength in ((3, 0.16), (8, 0.09), (24, 0.05)):
        coarse = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
        smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        texture = texture + strength * np.asarray(smooth)[..., None]
    if rng.uniform() < 0.4:
        angle, period = rng.uniform(0, np.pi), rng.uniform(8, 24)
        y, x = np.mgrid[:height, :width]
        wave = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period)
        texture = texture + 0.06 * np.sign(wave)[..., None]
    return Image.fromarray(((base + texture).clip(0, 1) * 255).astype(np.uint8))


def _sprite_grid() -> tuple[np.ndarray, np.ndarray]:
    """Coordinates u and v of a sprite's pixel centers."""
    grid = (np.arange(SPRITE_SIZE) + 0.5) / SPRITE_SIZE * 2 - 1
    u, v = np.meshgrid(grid, grid)
    return u, v


def _pattern_value(
    pattern: str, u: np.ndarray, v: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """How dark a pattern is at u and v, in 0..1."""
    frequency, phase = rng.uniform(2.3, 3.2), rng.uniform(0, 2 * np.pi)
    x, y = np.pi * frequency * u + phase, np.pi * frequency * v + phase
    values: dict[str, Callable[[], np.ndarray]] = {
        "plain": lambda: 0.15 + 0.15 * (u + v) / 2,
        "stripes": lambda: np.sin(1.4 * x) > 0,
        "checks": lambda: np.sin(x) * np.sin(y) > 0,
        "dots": lambda: np.sin(1.2 * x) * np.sin(1.2 * y) > 0.45,
        "rings": lambda: np.sin(2 * np.pi * frequency * np.hypot(u, v) + phase) > 0,
    }
    return values[pattern]().astype(np.float64)
