"""Colors of classes, and images that store an index per pixel.

AVSBench-semantic uses PASCAL VOC's colors: the bits of a class index, three at a time, fill red,
green and blue from the highest bit down. Background is black.
"""

import numpy as np
from PIL import Image


def _voc_palette(num_classes: int) -> np.ndarray:
    index = np.arange(num_classes)[:, None]
    channel = np.arange(3)
    bits = [((index >> (3 * place + channel)) & 1) << (7 - place) for place in range(8)]
    return np.sum(bits, axis=0).astype(np.uint8)


CLASS_PALETTE = _voc_palette(71)  # [K, 3] RGB of AVSBench-semantic's classes


def indexed_image(index: np.ndarray, palette: np.ndarray) -> Image.Image:
    """A palette image (PIL mode P), ready to be saved as PNG.

    Args:
      index: integers 0..255 [H, W].
      palette: uint8 [n, 3], RGB of the indices.
    """
    image = Image.fromarray(np.ascontiguousarray(index, np.uint8))
    image.putpalette(palette.tobytes())  # makes it mode P
    return image
