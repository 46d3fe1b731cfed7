"""The twelve categories of generated objects: what each looks like and what it sounds like.

Names come from AVSBench's Single-source list and from AVSBench-semantic, so that generated clips
fit the layouts and label tables of the real datasets. They are labels only: nothing here resembles
a helicopter. Every category has its own look (outline, pattern, hue) and its own timbre (pitch
range, spectral envelope, pulses). Both are easy to tell apart, in a small frame and in a 64-band
log-mel. Color, pattern phase, pitch and pulse rate vary from clip to clip.
"""

import dataclasses

from avs_jax.generate.sounds import Timbre


@dataclasses.dataclass(frozen=True)
class Category:
    """How a kind of object looks and sounds."""

    name: str  # in Single-source
    semantic: str  # in AVSBench-semantic
    outline: str  # name in drawing.outline_mask
    pattern: str  # "plain", "stripes", "checks", "dots" or "rings"
    hue: float  # 0..1
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


# The 71 classes of AVSBench-semantic, background first. A name's position is its class index.
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
