"""Files that somebody else wrote, read strictly: whole, of a bounded size, and never a named pipe.

Every reader raises `InputError`, one line that begins with the path. A size that a header declares
is checked before memory of that size is asked for.
"""

import io
import json
import pathlib
import wave
from typing import Any

import numpy as np
from PIL import Image

from avs_jax.data.audio import EXAMPLE_SAMPLES, MAX_RATE, MIN_RATE
from avs_jax.files import read_regular
from avs_jax.label_images import open_image
from avs_jax.spec import SAMPLE_RATE, InputError, first_line

MAX_BYTES = 1 << 30  # of a file
MAX_TEXT_BYTES = 64 << 20
MAX_CHANNELS = 8  # of a sound


def read_bytes(path: pathlib.Path, max_bytes: int = MAX_BYTES) -> bytes:
    """A file's bytes."""
    try:
        return read_regular(path, max_bytes)
    except FileNotFoundError as error:
        raise InputError(f"{path}: missing") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def read_text(path: pathlib.Path) -> str:
    """A text file in UTF-8, with or without its mark, or in UTF-16 with it."""
    data = read_bytes(path, MAX_TEXT_BYTES)
    is_utf16 = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    try:
        return data.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path}, line {line}: not {error.encoding} ({error.reason}); save the file as UTF-8"
        ) from error


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object."""
    text = read_text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({first_line(error)})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: a JSON {type(content).__name__}, expected an object")
    return content


def read_image(path: pathlib.Path) -> tuple[bytes, Image.Image]:
    """The bytes of an image and what they decode to, to its last pixel."""
    data = read_bytes(path)
    try:
        with open_image(data) as image:
            return data, image
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def read_wav(path: pathlib.Path) -> tuple[np.ndarray, int]:
    """Waveform int16 [n, channels] and sampling rate (Hz) of a 16-bit PCM WAV file.

    The file must be as long as its header says, and hold one log-mel example at least.
    """
    data = read_bytes(path)
    try:
        with wave.open(io.BytesIO(data)) as file:
            channels, width, rate, count = file.getparams()[:4]
            samples = file.readframes(count)
    # wave answers damaged headers with several kinds of exceptions.
    except Exception as error:
        reason = "empty" if not data else first_line(error)
        raise InputError(f"{path}: unreadable wav ({reason})") from error
    if width != 2 or channels > MAX_CHANNELS:
        raise InputError(
            f"{path}: {channels} channels of {8 * width} bits, expected 16-bit PCM and at most "
            f"{MAX_CHANNELS} channels"
        )
    if not MIN_RATE <= rate <= MAX_RATE:
        raise InputError(f"{path}: sampled at {rate} Hz, expected {MIN_RATE} to {MAX_RATE}")
    if len(samples) != 2 * channels * count:
        held = len(samples) // (2 * channels)
        raise InputError(f"{path}: truncated wav, {held} of {count} samples")
    if count * SAMPLE_RATE < EXAMPLE_SAMPLES * rate:
        raise InputError(
            f"{path}: {count / rate:.3f} s of sound, less than one log-mel example (0.975 s)"
        )
    return np.frombuffer(samples, "<i2").astype(np.int16).reshape(count, channels), rate
