"""Class-agnostic colour masks: how VCT turns a set of overlapping masks into one palette PNG.

Masks are sorted by area, smallest first; each is painted only where nothing is painted yet, so
small masks win; the id is the rank plus one and pixels in no mask keep 0. The palette is the 150
colours usual for ADE20K, index 0 being (120, 120, 120). A colour tells nothing but the rank of a
mask's area: neither a class nor an identity over time.

Source: VCT (repository spyflying/VCT_AVS), its pre-mask tool. Departure: more than 149 masks have
no colour there; here the largest ones beyond 149 stay unpainted.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

# Six hexadecimal digits per colour, red first.
_PALETTE_HEX = """
787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 e005ff ebff07 96053d 787846
08ff33 ff0652 8fff8c ccff04 ff3307 cc4603 0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0 0907e6 dcdcdc
ff095c 7009ff 08ffd6 07ffe0 ffb806 0aff47 ff290a 07ffff e0ff08 6608ff ff3d06 ffc207 ff7a08 00ff14
ff0829 ff0599 0633ff eb0cff a09614 00a3ff 8c8c8c fa0a0f 14ff00 1fff00 ff1f00 ffe000 99ff00 0000ff
ff4700 00ebff 00adff 1f00ff 0bc8c8 ff5200 00fff5 003dff 00ff70 00ff85 ff0000 ffa300 ff6600 c2ff00
008fff 33ff00 0052ff 00ff29 00ffad 0a00ff adff00 00ff99 ff5c00 ff00ff ff00f5 ff0066 ffad00 ff0014
ffb8b8 001fff 00ff3d 0047ff ff00cc 00ffc2 00ff52 000aff 0070ff 3300ff 00c2ff 007aff 00ffa3 ff9900
00ff0a ff7000 8fff00 5200ff a3ff00 ffeb00 08b8aa 8500ff 00ff5c b800ff ff001f 00b8ff 00d6ff ff0070
5cff00 00e0ff 70e0ff 46b8a0 a300ff 9900ff 47ff00 ff00a3 ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff
ff007a fff500 0abed4 d6ff00 00ccff 1400ff ffff00 0099ff 0029ff 00ffcc 2900ff 29ff00 ad00ff 00f5ff
4700ff 7a00ff 00ffb8 005cff b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff
"""
PALETTE = np.array(
    [list(bytes.fromhex(colour)) for colour in _PALETTE_HEX.split()], np.uint8
)  # [150, 3] RGB


def _bit_palette(count: int) -> np.ndarray:
    """PASCAL VOC's colours: the bits of an index, three at a time, fill RGB from the top."""
    index = np.arange(count)
    colours = np.zeros((count, 3), np.uint8)
    for place in range(8):
        for channel in range(3):
            colours[:, channel] |= ((index >> (3 * place + channel) & 1) << (7 - place)).astype(
                np.uint8
            )
    return colours


CLASS_PALETTE = _bit_palette(71)  # [71, 3] RGB of AVSBench-semantic's classes, background black


def paint_by_area(masks: Sequence[np.ndarray]) -> np.ndarray:
    """Index map of overlapping masks by the rule above.

    Args:
      masks: bool arrays [H, W], at least one; empty masks are left out.

    Returns:
      uint8 [H, W]: 0 where no mask is, else 1 + the rank by area, at most 149.

    Raises:
      ValueError: there is no mask, so no size either.
    """
    if len(masks) == 0:
        raise ValueError("paint_by_area: no masks given; pass at least one, empty if need be")
    areas = [int(np.count_nonzero(mask)) for mask in masks]
    order = [i for i in np.argsort(areas, kind="stable") if areas[i]]
    index = np.zeros(np.shape(masks[0]), np.uint8)
    for rank, i in enumerate(order[: len(PALETTE) - 1]):
        index[masks[i] & (index == 0)] = rank + 1
    return index


def to_rgb(index: np.ndarray) -> np.ndarray:
    """Palette colours uint8 [H, W, 3] of an index map uint8 [H, W]."""
    return PALETTE[index]


def to_image(index: np.ndarray, palette: np.ndarray = PALETTE) -> Image.Image:
    """Palette image (PIL mode P) of an index map uint8 [H, W], ready to be saved as PNG."""
    image = Image.fromarray(np.ascontiguousarray(index, np.uint8))
    image.putpalette(palette.tobytes())  # makes it mode P
    return image
