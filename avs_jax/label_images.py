"""Images whose pixels are labels (masks, class indices), read the same way wherever they come from.

  gray, 1 to 16 bits  the value of a pixel
  palette             its index; the palette's colors and transparency mean nothing
  RGB                 its three values
  alpha channel       ignored where it says nothing: constant, or transparent exactly where the
                      color is black. Otherwise the mask may be in it, so the image is refused.

AVSBench-semantic colors its classes as PASCAL VOC does: the bits of a class index, three at a time,
fill red, green and blue from the highest bit down. Background is black.
"""

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from avs_jax.spec import InputError, first_line

MAX_PIXELS = 1 << 26  # of an image: 8192 x 8192
# Pillow would hand an EPS file to Ghostscript, which runs it as a program.
FORMATS = ("PNG", "JPEG")


def _voc_palette(num_classes: int) -> np.ndarray:
    index = np.arange(num_classes)[:, None]
    channel = np.arange(3)
    bits = [((index >> (3 * place + channel)) & 1) << (7 - place) for place in range(8)]
    return np.sum(bits, axis=0).astype(np.uint8)


CLASS_PALETTE = _voc_palette(71)  # [K, 3] RGB of AVSBench-semantic's classes


def open_image(data: bytes) -> Image.Image:
    """An encoded PNG or JPEG, decoded to its last pixel.

    Raises:
      InputError: something else, damaged, or of more than MAX_PIXELS.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise InputError(f"{image.width}x{image.height} px, at most {MAX_PIXELS:,} pixels")
        image.load()
        return image
    except UnidentifiedImageError as error:  # its message is an address in memory
        raise InputError(f"unreadable image (not {' or '.join(FORMATS)})") from error
    # Pillow answers damaged files with many kinds of exceptions.
    except Exception as error:
        raise InputError(f"unreadable image ({first_line(error)})") from error


def label_pixels(image: Image.Image) -> np.ndarray:
    """The pixels of an image by the rule above: bool or integers, [H, W] or [H, W, 3].

    Raises:
      InputError: the alpha channel says something that the color does not.
    """
    pixels = np.asarray(image)
    if image.getbands()[-1] not in ("A", "a"):
        return pixels
    color, alpha = pixels[..., :-1], pixels[..., -1]
    is_constant = alpha.min(initial=255) == alpha.max(initial=0)
    if not is_constant and not np.array_equal(color.any(axis=-1), alpha > 0):
        raise InputError(
            f"mode {image.mode}: the alpha channel differs from the color, and either may be the "
            "mask; save it as gray without alpha"
        )
    return color[..., 0] if color.shape[-1] == 1 else color


def is_index_0_brighter(image: Image.Image) -> bool:
    """Whether a palette image shows index 0 brighter than every other index in use.

    Background is index 0, so such a mask looks inverted.
    """
    if image.mode != "P":
        return False
    brightness = np.reshape(image.getpalette("RGB"), (-1, 3)).sum(axis=1)
    others = np.setdiff1d(np.asarray(image), 0)
    others = others[others < len(brightness)]
    return bool(others.size and brightness[0] > brightness[others].max())


def indexed_image(index: np.ndarray, palette: np.ndarray) -> Image.Image:
    """A palette image (PIL mode P), ready to be saved as PNG.

    Args:
      index: integers 0..255 [H, W].
      palette: uint8 [n, 3], RGB of the indices.
    """
    image = Image.fromarray(np.ascontiguousarray(index, np.uint8))
    image.putpalette(palette.tobytes())  # makes it mode P
    return image
