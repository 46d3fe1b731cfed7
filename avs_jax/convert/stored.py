"""Arrays that a weight file declares: every check before memory is spent on them.

The reader of a format returns one `StoredArray` per tensor. Its size follows from the file's header
or directory alone, so a file can be refused before anything large is allocated or unpacked.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from avs_jax.spec import InputError

NUMERIC = {dtype.str[1:]: dtype for dtype in map(np.dtype, "?BHILbhilefd")}  # "f4" -> float32
_MAX_AXES = 64  # numpy's limit
_MAX_SIZE = 2**63 - 1  # numpy's limit on the bytes of one array


class WeightsError(InputError):
    """A weight file that cannot be read; the message names the file and the reason."""


class Source(NamedTuple):
    """Bytes of a file from which arrays are built; `load` takes `nbytes` of memory for them."""

    nbytes: int
    load: Callable[[], Any]


class StoredArray(NamedTuple):
    """An array that is declared and checked, but not read yet."""

    nbytes: int  # memory that the array takes
    source: Any  # a `Source`, or what has its attributes; several arrays may share it
    build: Callable[[Any], np.ndarray]  # from what `source.load` returned; new and writable

    def declare(self) -> "StoredArray":
        """Returns itself; the stand-ins in pickles have this method, too."""
        return self


def are_sizes(*values: Any) -> bool:
    """Whether all are integers from 0 to numpy's limit."""
    return all(type(value) is int and 0 <= value <= _MAX_SIZE for value in values)


def check_shape(shape: Any, itemsize: int, found: int | None = None) -> tuple[tuple, int]:
    """A shape as a tuple, and the bytes of its array.

    Raises:
      WeightsError: numpy has no array of that shape, not even an empty one, or the file has another
        number of bytes for it: `found`.
    """
    axes = shape if isinstance(shape, list | tuple) else [shape]
    is_valid = axes is shape and len(axes) <= _MAX_AXES and are_sizes(*axes)
    if not is_valid or math.prod(max(n, 1) for n in axes) * itemsize > _MAX_SIZE:
        is_short = [type(n) is int and n.bit_length() < 99 for n in axes[:4]]
        shown = [str(n) if s else describe(n) for n, s in zip(axes, is_short, strict=False)]
        shown += [f"... {len(axes)} axes"] * (len(axes) > 4)
        raise WeightsError(f"impossible shape ({', '.join(shown)})")
    nbytes = math.prod(axes) * itemsize
    if found not in (None, nbytes):
        raise WeightsError(f"{found} bytes, shape {tuple(axes)} needs {nbytes}")
    return tuple(axes), nbytes


def array_from_bytes(data: bytes, dtype: np.dtype, shape: tuple, order: str = "C") -> np.ndarray:
    """A new array in C order and native byte order from bytes in `order`, "C" or "F"."""
    array = np.frombuffer(data, dtype).reshape(shape, order=order)
    return array.astype(dtype.newbyteorder("="), order="C")


@contextlib.contextmanager
def blame(what: Any, *damage: type[Exception]) -> Iterator[None]:
    """Puts `what` before the message of a WeightsError, and turns `damage` into one."""
    try:
        yield
    except (WeightsError, *damage) as error:
        if isinstance(error, MemoryError) and MemoryError not in damage:
            raise  # a sound file can take too much of it, too
        text = " ".join(str(error).split())[:300]  # one line, whatever a library or a file says
        kind = "" if isinstance(error, WeightsError) else f"{type(error).__name__}: "
        raise WeightsError(f"{what}: {kind}{text}") from error


def describe(value: Any) -> str:
    """The kind of a value; its text could be endless, since a list may contain itself twice."""
    if isinstance(value, dict):
        return f"a dict with {len(value)} entries"
    if hasattr(value, "declare"):
        return "one array"
    return "None" if value is None else f"a {type(value).__name__}"
