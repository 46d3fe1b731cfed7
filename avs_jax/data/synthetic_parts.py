"""The looks and the sounds that generated clips are made of.

Twelve categories with names out of AVSBench's Single-source list, and the names that
AVSBench-semantic has for such things. Each has its own look (outline,
pattern, hue) and its own timbre (pitch range, spectral envelope, pulses), so that both are easy to
tell apart on a small picture and on a 64-band log-mel; colour, pattern phase, pitch and pulse rate
vary from clip to clip. Names are labels only: nothing here resembles a helicopter.
"""

import colorsys
import dataclasses

import numpy as np
from PIL import Image

SPRITE_SIZE = 96  # px of an object's own raster
_OCTAVE = np.log(2.0)


@dataclasses.dataclass(frozen=True)
class Timbre:
    """Source, spectral envelope and pulses of a sound; ranges are (low, high), drawn per clip.

    The envelope is a Gaussian over log frequency: centre in Hz, standard deviation in octaves.
    """

    harmonic: float  # share of the harmonic source, the rest is noise
    pitch: tuple[float, float]  # Hz
    centre: tuple[float, float]  # Hz
    width: float  # octaves
    vibrato: tuple[float, float]  # (Hz, relative depth)
    pulse_rate: tuple[float, float]  # Hz; (0, 0) = continuous
    pulse_decay: float = 0.0  # s


@dataclasses.dataclass(frozen=True)
class Category:
    """One row of the table: how it looks and how it sounds."""

    name: str  # in Single-source
    semantic: str  # in AVSBench-semantic
    outline: str
    pattern: str
    hue: float
    timbre: Timbre


CATEGORIES = (
    Category("helicopter", "helicopter", "cross", "plain", 0.58,
             Timbre(0.0, (100, 100), (160, 200), 0.6, (0, 0), (9, 14), 0.03)),
    Category("typing_on_computer_keyboard", "keyboard", "square", "checks", 0.0,
             Timbre(0.0, (100, 100), (5300, 6500), 0.4, (0, 0), (6, 10), 0.02)),
    Category("playing_violin", "violin", "ellipse", "stripes", 0.08,
             Timbre(1.0, (520, 800), (1500, 2000), 1.3, (5.5, 0.02), (0, 0))),
    Category("playing_piano", "piano", "hexagon", "stripes", 0.75,
             Timbre(1.0, (320, 440), (380, 460), 0.5, (0, 0), (3, 4.5), 0.25)),
    Category("lions_roaring", "lion", "star", "rings", 0.15,
             Timbre(0.5, (55, 80), (420, 600), 0.7, (0, 0), (24, 34), 0.03)),
    Category("baby_laughter", "baby", "disk", "dots", 0.92,
             Timbre(0.9, (360, 480), (2300, 3000), 0.5, (3, 0.06), (4, 6), 0.08)),
    Category("male_speech", "man", "triangle", "plain", 0.35,
             Timbre(0.9, (95, 130), (700, 950), 0.5, (2, 0.05), (3, 4), 0.12)),
    Category("lawn_mowing", "mower", "gear", "checks", 0.28,
             Timbre(0.25, (100, 130), (2900, 3700), 1.3, (0, 0), (0, 0))),
    Category("ambulance_siren", "emergency-car", "ring", "plain", 0.5,
             Timbre(1.0, (900, 1250), (1000, 1200), 0.4, (0.9, 0.25), (0, 0))),
    Category("dog_barking", "dog", "crescent", "rings", 0.67,
             Timbre(0.5, (420, 560), (1100, 1500), 0.7, (0, 0), (2.2, 3), 0.09)),
    Category("cat_meowing", "cat", "drop", "stripes", 0.43,
             Timbre(1.0, (620, 760), (4300, 5000), 0.35, (1.2, 0.12), (0, 0))),
    Category("race_car", "car", "bar", "dots", 0.83,
             Timbre(0.8, (60, 75), (120, 180), 0.5, (0.7, 0.1), (0, 0))),
)  # fmt: skip


# The 71 classes of AVSBench-semantic, background first; a name's position is its class.
SEMANTIC_CLASSES = (
    "background", "accordion", "airplane", "axe", "baby", "bagpipe", "banjo", "bassoon", "bell",
    "bicycle", "bird", "boat", "bus", "car", "cat", "cello", "clarinet", "clock", "cow", "dog",
    "drum", "duck", "elephant", "emergency-car", "erhu", "flute", "frog", "goat", "guitar", "gun",
    "guzheng", "hair-dryer", "hammer", "harmonica", "harp", "helicopter", "hen", "horse",
    "keyboard", "leopard", "lion", "man", "marimba", "motorcycle", "mower", "parrot", "piano",
    "pig", "pipa", "rocket", "saw", "saxophone", "sewing-machine", "sheep", "sitar", "squirrel",
    "tabla", "tank", "tiger", "tractor", "train", "trombone", "truck", "trumpet", "tuba",
    "ukulele", "vacuum-cleaner", "violin", "whistle", "wolf", "woman",
)  # fmt: skip


def outline_mask(outline: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Bool mask of an outline at coordinates u (right) and v (down) in -1..1."""
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    wide = np.maximum(np.abs(u), np.abs(v))
    narrow = np.minimum(np.abs(u), np.abs(v))
    masks = {
        "disk": radius < 0.95,
        "square": wide < 0.85,
        "ellipse": np.hypot(u / 0.98, v / 0.55) < 1,
        "cross": (narrow < 0.36) & (wide < 0.95),
        "ring": (radius > 0.42) & (radius < 0.97),
        "hexagon": radius * np.cos((angle % (np.pi / 3)) - np.pi / 6) < 0.82,
        "triangle": (v < 0.75) & (v > 1.9 * np.abs(u) - 0.95),
        "star": radius < 0.66 + 0.3 * np.cos(5 * angle + np.pi / 2),
        "gear": radius < 0.84 + 0.12 * np.sign(np.cos(9 * angle)),
        "drop": (np.hypot(u, v - 0.35) < 0.6)
        | ((v < 0.35) & (v > -0.95) & (np.abs(u) < 0.46 * (v + 0.95))),
        "bar": (np.abs(v) < 0.4) & (np.abs(u) < 0.97),
        "crescent": (radius < 0.95) & (np.hypot(u - 0.5, v) > 0.62),
    }
    return masks[outline]


def _pattern(pattern: str, u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pattern value in 0..1 at coordinates u, v."""
    frequency, phase = rng.uniform(2.3, 3.2), rng.uniform(0, 2 * np.pi)
    x, y = np.pi * frequency * u + phase, np.pi * frequency * v + phase
    return {
        "plain": 0.15 + 0.15 * (u + v) / 2,
        "stripes": (np.sin(1.4 * x) > 0).astype(np.float64),
        "checks": (np.sin(x) * np.sin(y) > 0).astype(np.float64),
        "dots": (np.sin(1.2 * x) * np.sin(1.2 * y) > 0.45).astype(np.float64),
        "rings": (np.sin(2 * np.pi * frequency * np.hypot(u, v) + phase) > 0).astype(np.float64),
    }[pattern]


def sprite(category: Category, rng: np.random.Generator) -> Image.Image:
    """RGBA raster of one object, SPRITE_SIZE square; only alpha ends at the outline."""
    grid = (np.arange(SPRITE_SIZE) + 0.5) / SPRITE_SIZE * 2 - 1
    u, v = np.meshgrid(grid, grid)
    hue = (category.hue + rng.uniform(-0.03, 0.03)) % 1
    saturation, value = rng.uniform(0.7, 1.0), rng.uniform(0.7, 1.0)
    first = np.array(colorsys.hsv_to_rgb(hue, saturation, value))
    second = np.array(colorsys.hsv_to_rgb(hue, saturation * 0.5, value * rng.uniform(0.3, 0.5)))
    mix = _pattern(category.pattern, u, v, rng)[..., None]
    rgb = first * (1 - mix) + second * mix
    rgb = rgb * (1.0 - 0.15 * v[..., None])  # lit from above
    alpha = outline_mask(category.outline, u, v)[..., None]
    return Image.fromarray((np.concatenate([rgb.clip(0, 1), alpha], -1) * 255).astype(np.uint8))


def outline_share(outline: str) -> float:
    """Share of its bounding square that an outline covers."""
    grid = (np.arange(SPRITE_SIZE) + 0.5) / SPRITE_SIZE * 2 - 1
    return float(outline_mask(outline, *np.meshgrid(grid, grid)).mean())


def background(height: int, width: int, rng: np.random.Generator) -> Image.Image:
    """RGB texture of low saturation: blotches at three scales, fine grain, perhaps planks."""
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


def sound(
    timbre: Timbre, num_samples: int, sample_rate: int, rng: np.random.Generator
) -> np.ndarray:
    """A sound of a timbre, float64 [num_samples], root mean square 1."""
    time = np.arange(num_samples) / sample_rate
    centre = rng.uniform(*timbre.centre)

    def envelope(frequency: np.ndarray) -> np.ndarray:
        octaves = np.log(np.maximum(frequency, 1.0) / centre) / _OCTAVE
        return np.exp(-0.5 * (octaves / timbre.width) ** 2) * (frequency < 7600)

    pulses, notes = _pulses(timbre, time, rng)
    wave = np.zeros(num_samples)
    if timbre.harmonic > 0:
        pitch = rng.uniform(*timbre.pitch)
        rate, depth = timbre.vibrato
        bend = notes * (1 + depth * np.sin(2 * np.pi * (rate * time + rng.uniform())))
        phase = np.cumsum(pitch * bend) / sample_rate
        order = np.arange(1, max(2, int(7600 / pitch)))
        strength = envelope(order * pitch)
        # One period as a table, then looked up along the phase: far cheaper than a sum of sines.
        table_phase = np.arange(2048) / 2048
        table = strength @ np.sin(2 * np.pi * order[:, None] * table_phase + order[:, None])
        harmonic = table[(phase % 1 * 2048).astype(np.int64)]
        wave += np.sqrt(timbre.harmonic) * harmonic / np.sqrt(np.mean(harmonic**2))
    if timbre.harmonic < 1:
        spectrum = np.fft.rfft(rng.standard_normal(num_samples))
        noise = np.fft.irfft(
            spectrum * envelope(np.fft.rfftfreq(num_samples, 1 / sample_rate)), num_samples
        )
        wave += np.sqrt(1 - timbre.harmonic) * noise / np.sqrt(np.mean(noise**2))
    wave = wave * pulses
    return wave / np.sqrt(np.mean(wave**2))


def _pulses(
    timbre: Timbre, time: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Gain [n] of decaying pulses at slightly irregular times, and their pitch factors [n]."""
    if timbre.pulse_rate[1] == 0:
        return np.ones_like(time), np.ones_like(time)
    period = 1 / rng.uniform(*timbre.pulse_rate)
    count = int(time[-1] / period) + 3
    onsets = (np.arange(count) - rng.uniform()) * period
    onsets[1:] += rng.uniform(-0.15, 0.15, count - 1) * period
    which = np.searchsorted(onsets, time, side="right") - 1
    age = np.maximum(time - onsets[which], 0.0)
    attack = np.minimum(age / 0.004, 1.0)
    tones = 2 ** (rng.integers(-3, 4, count) / 12) if timbre.harmonic else np.ones(count)
    return attack * np.exp(-age / timbre.pulse_decay), tones[which]
