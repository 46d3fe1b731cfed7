"""Features of clips and words that need no weights: colors, spectra and hashed words.

  colors   soft histogram over hue of each frame's saturated pixels, coarser over gray levels, as
           square roots of shares; the mean over the frames of a clip        [n, COLORS_DIM]
  mel      mean and standard deviation over time of the clip's log-mel by band; digital silence is 0
                                                                             [n, MEL_DIM]
  hashed   a word is the sum of fixed pseudo-random vectors of its trigrams and of itself, of unit
           length: equal words are equal, words that share a stem are close  [words, dim]

They are enough for generated videos and as a baseline; features of trained backbones are in
inference/clip_features.py. The hashing is fastText's (Bojanowski et al., TACL 2017) with random
instead of learned vectors.
"""

import functools
import re
import zlib

import numpy as np

from avs_jax.data.audio import LOG_OFFSET, log_mel
from avs_jax.spec import MEL_BANDS, InputError

NUM_HUES, NUM_GRAYS = 36, 8
COLORS_DIM = 2 * NUM_HUES + NUM_GRAYS  # hues of bright and of dark pixels
MEL_DIM = 2 * MEL_BANDS
_SATURATED = 0.35  # below, a pixel has a gray level instead of a hue
_BRIGHT = 0.6  # of the largest channel, 0..1


def color_histogram(frames: np.ndarray) -> np.ndarray:
    """uint8 RGB [T, H, W, 3] -> float32 [COLORS_DIM], the mean over the frames."""
    return np.mean([_frame_colors(frame) for frame in frames], axis=0).astype(np.float32)


def _frame_colors(frame: np.ndarray) -> np.ndarray:
    rgb = frame.reshape(-1, 3).astype(np.float32) / 255
    high, low = rgb.max(axis=1), rgb.min(axis=1)
    spread = high - low
    colored = spread > _SATURATED * np.maximum(high, 1e-6)
    r, g, b = rgb[colored].T
    peak, range_ = high[colored], spread[colored]
    sectors = [(g - b) / range_, 2 + (b - r) / range_, 4 + (r - g) / range_]
    hue = np.select([peak == r, peak == g], sectors[:2], sectors[2])
    bins = (hue / 6 % 1) * NUM_HUES
    left = np.floor(bins).astype(int) % NUM_HUES
    share = bins - np.floor(bins)
    row = NUM_HUES * (peak < _BRIGHT)
    counts = np.bincount(row + left, 1 - share, 2 * NUM_HUES)
    counts += np.bincount(row + (left + 1) % NUM_HUES, share, 2 * NUM_HUES)
    grays = np.bincount((high[~colored] * (NUM_GRAYS - 1e-3)).astype(int), minlength=NUM_GRAYS)
    return np.sqrt(np.concatenate([counts, grays]) / len(rgb))


def mel_statistics(examples: np.ndarray) -> np.ndarray:
    """Log-mel examples float32 [n, 96, 64] of one clip -> float32 [MEL_DIM]."""
    bands = examples.reshape(-1, MEL_BANDS) - np.log(LOG_OFFSET)
    return np.concatenate([bands.mean(axis=0), bands.std(axis=0)]).astype(np.float32)


def clip_log_mel(waveform: np.ndarray, sample_rate: int, num_examples: int) -> np.ndarray:
    """Log-mel examples of a clip's sound, float32 [num_examples, 96, 64].

    A sound that ends early is followed by digital silence.
    """
    missing = num_examples * sample_rate - len(waveform)
    if missing > 0:
        waveform = np.concatenate([waveform, np.zeros((missing, *waveform.shape[1:]), np.int16)])
    return log_mel(waveform, sample_rate, num_examples)


def hashed_words(text: str, dim: int) -> np.ndarray:
    """The words of a text, float32 [words, dim].

    Raises:
      InputError: the text has no word.
    """
    words = re.findall(r"\w+(?:'\w+)*", text.lower())
    if not words:
        raise InputError(f"the text {text!r} has no word")
    return np.stack([_word_vector(word, dim) for word in words])


@functools.lru_cache(4096)
def _word_vector(word: str, dim: int) -> np.ndarray:
    marked = f"<{word}>"
    pieces = [marked, *(marked[i : i + 3] for i in range(len(marked) - 2))]
    vector = np.sum([_piece_vector(piece, dim) for piece in pieces], axis=0)
    vector = vector + _piece_vector(marked, dim)  # the whole word weighs more than a trigram
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def _piece_vector(piece: str, dim: int) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(piece.encode())).standard_normal(dim)
