"""Frames, masks and samples as the bytes of image and sound files."""

import io
import wave

import numpy as np
from PIL import Image


def encode_image(image: Image.Image, suffix: str) -> bytes:
    """The bytes of a .png or .jpg file."""
    buffer = io.BytesIO()
    if suffix == ".jpg":
        image.save(buffer, "jpeg", quality=92)
    else:
        image.save(buffer, "png", compress_level=4)
    return buffer.getvalue()


def encode_wav(audio: np.ndarray, sample_rate: int, stereo: bool = False) -> bytes:
    """The bytes of a WAV file of mono samples int16 [n], on two channels if `stereo`."""
    buffer = io.BytesIO()
    samples = np.repeat(audio[:, None], 2 if stereo else 1, axis=1)
    with wave.open(buffer, "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(samples.tobytes())
    return buffer.getvalue()
