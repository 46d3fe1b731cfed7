"""Whether a record of a clip has the fields that data/clip.py reads, of the types it reads.

The features of a folder of records come from a file that anybody may have written.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from avs_jax.spec import InputError
from avs_jax.task import Record


def _is_array(kinds: str, *axes: int) -> Callable[[Any], bool]:
    def holds(value: Any) -> bool:
        array = value if isinstance(value, np.ndarray) else np.asarray(value)
        return array.ndim in axes and (array.dtype.kind in kinds or not array.size)

    return holds


def _are_images(value: Any) -> bool:
    return isinstance(value, (list, tuple, np.ndarray)) and all(
        isinstance(image, (bytes, bytearray))
        or isinstance(image, np.ndarray)
        and image.ndim in (2, 3)
        and image.dtype.kind in "bui"
        for image in value
    )


def _is_waveform(value: Any) -> bool:
    is_known = isinstance(value, np.ndarray) and (
        value.dtype == np.int16 or value.dtype.kind == "f"
    )
    return is_known and value.ndim in (1, 2) and value.shape[1:] != (0,)


def _is_text(value: Any) -> bool:
    return isinstance(value, (str, bytes))


def _is_flow(value: Any) -> bool:
    is_float = isinstance(value, np.ndarray) and value.dtype.kind == "f"
    return is_float and (not value.size or value.ndim == 4)


# field -> (predicate, the predicate in words)
_NEEDED = {
    "frames": (_are_images, "a list of images"),
    "masks": (_are_images, "a list of images"),
    "mask_index": (_is_array("iu", 1), "a list of integers"),
    "waveform": (_is_waveform, "int16 or float numbers [n] or [n, channels]"),
    "sample_rate": (_is_array("iu", 0), "an integer"),
}
_OPTIONAL = {
    "clip_id": (_is_text, "text"),
    "category": (_is_text, "text"),
    "category_label": (_is_array("iu", 0), "an integer"),
    "pre_masks": (_are_images, "a list of images"),
    "flow": (_is_flow, "float numbers [T, H, W, C]"),
    "flow_has_first": (_is_array("biu", 0), "a truth value"),
    "motion_track": (_is_flow, "float numbers [N, 24, 24, C]"),
    "motion_track_rate": (_is_array("fiu", 0), "a number"),
}


def check_record(record: Record) -> None:
    """Raises InputError naming the first field that is missing or of another type."""
    for name, (holds, wanted) in (_NEEDED | _OPTIONAL).items():
        if name not in record:
            if name in _NEEDED:
                raise InputError(f"the record lacks {name}; it has {', '.join(sorted(record))}")
            continue
        value = record[name]
        try:
            is_right = holds(value)
        except ValueError:  # a list of lists of different lengths
            is_right = False
        if not is_right:
            array = np.shape(value) if isinstance(value, np.ndarray) else ""
            found = f"{getattr(value, 'dtype', type(value).__name__)} {array}".strip()
            raise InputError(f"the record's {name} is {found}, expected {wanted}")
