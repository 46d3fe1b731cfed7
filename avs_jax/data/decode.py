"""Decodes the values of a record: frames, label images, text."""

from typing import Any

import numpy as np

from avs_jax.label_images import label_pixels, open_image
from avs_jax.spec import IGNORE_LABEL, InputError


def decode_rgb(image: bytes | np.ndarray) -> np.ndarray:
    """An encoded or already decoded image as uint8 RGB [H, W, 3]."""
    if isinstance(image, np.ndarray) and image.ndim == 3:
        return image
    with open_image(bytes(image)) as opened:
        return np.asarray(opened.convert("RGB"))


def decode_labels(image: bytes | np.ndarray, num_classes: int) -> np.ndarray:
    """A label image, read by label_images.py, as classes, uint8 [H, W].

    With two classes, every nonzero value is 1; with more, values are classes. Color images (two
    classes only) count by their brightest channel.

    Raises:
      InputError: values that are not classes, or an alpha channel that may be the mask.
    """
    if isinstance(image, np.ndarray) and image.ndim >= 2:
        labels = image
    else:
        with open_image(bytes(image)) as opened:
            labels = label_pixels(opened)
    if num_classes == 2:
        labels = labels.max(axis=-1) if labels.ndim == 3 else labels
        return (labels > 0).astype(np.uint8)
    labels = labels[..., 0] if labels.ndim == 3 and labels.shape[-1] == 1 else labels
    if labels.ndim != 2:
        raise InputError(
            f"a label image of shape {labels.shape}, expected one class index per pixel"
        )
    unknown = [int(v) for v in np.unique(labels) if num_classes <= v != IGNORE_LABEL]
    if unknown:
        raise InputError(f"classes {unknown} in a label image, expected 0 to {num_classes - 1}")
    return labels.astype(np.uint8)


def decode_text(value: Any) -> str:
    """Text of a record, which TFDS gives as bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
