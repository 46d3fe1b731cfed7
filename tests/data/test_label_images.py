"""Images of labels: one meaning of their pixels, whatever the mode of the file."""

import io

import numpy as np
import pytest
from PIL import Image

from avs_jax.data.decode import decode_labels
from avs_jax.label_images import CLASS_PALETTE, indexed_image, is_index_0_brighter, label_pixels
from avs_jax.spec import InputError

MASK = np.zeros((6, 8), bool)
MASK[1:4, 2:7] = True


def encoded(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def reopened(image):
    return Image.open(io.BytesIO(encoded(image)))


def with_alpha(color, alpha):
    return Image.fromarray(np.dstack([color, alpha]).astype(np.uint8))


def test_class_palette_is_the_originals(golden_dir):
    with np.load(golden_dir / "golden_avs_metrics.npz") as golden:
        np.testing.assert_array_equal(CLASS_PALETTE, golden["palette71"])


GRAY = MASK * 255
RGB = np.dstack([GRAY] * 3)
MASKS = {
    "gray": Image.fromarray(np.uint8(255) * MASK),
    "gray_16": Image.fromarray(np.uint16(65535) * MASK),
    "one_bit": Image.fromarray(MASK),
    "palette": indexed_image(MASK, np.array([[9, 9, 9], [0, 0, 0]], np.uint8)),
    "opaque": with_alpha(RGB, np.full(MASK.shape, 255)),
    "opaque_gray": with_alpha(GRAY, np.full(MASK.shape, 255)),
    "alpha_of_the_same": with_alpha(RGB, GRAY),
    "rgb": Image.fromarray(RGB.astype(np.uint8)),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_is_a_mask_in_every_mode(name):
    image = reopened(MASKS[name])
    pixels = label_pixels(image)
    object_pixels = pixels.any(axis=-1) if pixels.ndim == 3 else pixels > 0
    np.testing.assert_array_equal(object_pixels, MASK)
    np.testing.assert_array_equal(decode_labels(encoded(image), 2), MASK)


@pytest.mark.parametrize("alpha", [GRAY, np.roll(GRAY, 1)])
@pytest.mark.parametrize("color", [RGB, GRAY, 0 * RGB])
def test_an_alpha_channel_that_may_be_the_mask_is_refused(color, alpha):
    if color.any() and np.array_equal(alpha, GRAY):
        alpha = 255 - alpha
    image = with_alpha(color, alpha)
    with pytest.raises(InputError, match=f"mode {image.mode}: the alpha channel differs"):
        label_pixels(image)
    with pytest.raises(InputError, match="the alpha channel differs"):
        decode_labels(encoded(image), 2)


def test_transparency_of_a_palette_means_nothing():
    image = indexed_image(MASK * 2, CLASS_PALETTE)
    file = io.BytesIO()
    image.save(file, "PNG", transparency=2)
    np.testing.assert_array_equal(label_pixels(Image.open(file)), MASK * 2)


def test_inverted_palettes():
    black_on_white = np.array([[255] * 3, [0] * 3], np.uint8)
    assert is_index_0_brighter(reopened(indexed_image(MASK, black_on_white)))
    assert not is_index_0_brighter(reopened(indexed_image(MASK, black_on_white[::-1])))
    assert not is_index_0_brighter(reopened(indexed_image(MASK * 0, black_on_white)))
    assert not is_index_0_brighter(reopened(indexed_image(MASK * 70, CLASS_PALETTE)))
    assert not is_index_0_brighter(MASKS["gray"])
