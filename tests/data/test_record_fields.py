"""Records that anybody may have written: a field that is missing or wrong is named."""

import numpy as np
import pytest

from avs_jax.data.clip import ClipRows
from avs_jax.spec import InputError
from tests import small

WRONG = {
    "frames": ("no list", "expected a list of images"),
    "masks": ([3], "expected a list of images"),
    "mask_index": (np.zeros(1), "float64 (1,), expected a list of integers"),
    "waveform": (np.zeros((9, 0), np.int16), "int16 (9, 0), expected int16 or float numbers"),
    "sample_rate": (b"16000", "bytes, expected an integer"),
    "category_label": (np.zeros(2, int), "int64 (2,), expected an integer"),
    "flow": (np.zeros((5, 8), np.float16), "float16 (5, 8), expected float numbers"),
    "category": (7, "int, expected text"),
}


@pytest.fixture(scope="module")
def rows():
    return ClipRows(small.tiny_config())


@pytest.mark.parametrize("name", WRONG)
def test_a_field_of_another_type(rows, name):
    value, message = WRONG[name]
    record = small.records(1)[0] | {name: value}
    for read in (rows.prepare, rows.prepare_labels):
        with pytest.raises(InputError) as error:
            read(record)
        assert str(error.value).startswith(f"clip clip0_0: the record's {name} is ")
        assert message in str(error.value) and "\n" not in str(error.value)


def test_a_missing_field_and_no_name(rows):
    record = small.records(1)[0]
    del record["waveform"], record["clip_id"]
    with pytest.raises(InputError, match=r"^clip \?: the record lacks waveform; it has category, "):
        rows.prepare(record)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(x) run\n"


@pytest.mark.parametrize("data", [b"no image", b"", EPS])
def test_frames_that_are_no_images(rows, data):
    """Pillow would let Ghostscript run an EPS file."""
    record = small.records(1)[0] | {"frames": [data] * 5}
    with pytest.raises(InputError, match="^clip clip0_0: unreadable image [(]not PNG or JPEG"):
        rows.prepare(record)
