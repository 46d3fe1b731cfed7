"""Frames and masks as the bytes of image files."""

import io

from PIL import Image


def encode_image(image: Image.Image, suffix: str) -> bytes:
    """The bytes of a .png or .jpg file."""
    buffer = io.BytesIO()
    if suffix == ".jpg":
        image.save(buffer, "jpeg", quality=92)
    else:
        image.save(buffer, "png", compress_level=4)
    return buffer.getvalue()
