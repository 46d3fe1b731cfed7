"""Sound to VGGish log-mel examples: the one front end for datasets and for own videos.

  waveform [n] or [n, channels]  ->  mono, float64  ->  16 kHz  ->  |STFT|  ->  mel  ->  log  ->
  [T, 96, 64] float32

Example k covers [0.96 k, 0.96 k + 0.975) s: examples do not overlap and drift slowly from "second
k". All arithmetic is float64; only the result is rounded. `encode_wav` makes a file of a sound.

Source: AudioSet's VGGish front end as AVSBench uses it (preprocess_scripts and torchvggish), and
resampy 0.4 (`kaiser_best`) for other sampling rates. Departure: the resampler is written as block
matrix products, one matrix per group of output phases, which gives the same sums in another order.
"""

import functools
import io
import wave
from collections.abc import Sequence

import numpy as np
import scipy.sparse
from numpy.lib.stride_tricks import sliding_window_view

from avs_jax.spec import MEL_BANDS, MEL_FRAMES, SAMPLE_RATE, InputError

WINDOW = 400  # samples of one STFT frame: 25 ms
HOP = 160  # samples between STFT frames: 10 ms
FFT_SIZE = 512
MEL_LOW, MEL_HIGH = 125.0, 7500.0  # Hz, outer edges of the mel bands
LOG_OFFSET = 0.01
MIN_RATE, MAX_RATE = 1_000, 384_000  # Hz; others are damaged headers, and resampling them is huge
EXAMPLE_SAMPLES = (MEL_FRAMES - 1) * HOP + WINDOW  # 15600: the shortest sound with one example

# resampy 0.4's kaiser_best: a Kaiser-windowed sinc, tabulated from its center outward.
ZERO_CROSSINGS = 50
POINTS_PER_CROSSING = 8192
ROLLOFF = 0.9173473712608761
KAISER_BETA = 12.984585247040012
PHASES_PER_BLOCK = 128  # output phases of one matrix product


def log_mel(
    waveform: np.ndarray,
    sample_rate: int,
    num_examples: int | None = None,
    short: str = "repeat",
    only: Sequence[int] | None = None,
) -> np.ndarray:
    """VGGish log-mel examples of a sound: float32 [T, 96, 64] (example, 10 ms frame, mel band).

    Args:
      waveform: int16 (full scale 32768) or float in [-1, 1], shape [n] or [n, channels].
      sample_rate: in Hz, from MIN_RATE to MAX_RATE.
      num_examples: T of the result; more are cut off. None: as many as the sound holds.
      short: how to reach num_examples when the sound holds fewer: "repeat" the last example
        (AVSBench's rule for S4 and MS3) or "zeros" (its rule for AVSS: zeros in log-mel, which is
        not silence).
      only: of these T, those to compute; the result has them alone, in this order.
    """
    if short not in ("repeat", "zeros"):
        raise ValueError(f"short is {short!r}, expected 'repeat' or 'zeros'")
    samples = resample(to_mono(waveform), int(sample_rate))
    count = max(0, (len(samples) - WINDOW) // HOP + 1) // MEL_FRAMES
    wanted = np.arange(count if num_examples is None else num_examples)
    wanted = wanted if only is None else wanted[np.asarray(only, int)]
    if short == "repeat" and not count and len(wanted):
        raise InputError(
            f"a sound of {len(samples) / SAMPLE_RATE:.3f} s is too short for one log-mel example: "
            f"{EXAMPLE_SAMPLES / SAMPLE_RATE} s are needed (or short='zeros')"
        )
    if short == "repeat":
        wanted = np.minimum(wanted, count - 1)
    examples = np.zeros((len(wanted), MEL_FRAMES, MEL_BANDS), np.float32)
    held, place = np.unique(wanted[wanted < count], return_inverse=True)
    if len(held):
        rows = (MEL_FRAMES * held[:, None] + np.arange(MEL_FRAMES)).reshape(-1)
        frames = sliding_window_view(samples, WINDOW)[::HOP][rows]
        magnitude = np.abs(np.fft.rfft(frames * hann_window(), FFT_SIZE))
        made = np.log(to_mel(magnitude) + LOG_OFFSET).reshape(-1, MEL_FRAMES, MEL_BANDS)
        examples[wanted < count] = made[place]
    return examples


def to_mono(waveform: np.ndarray) -> np.ndarray:
    """Channel mean as float64 [n] in [-1, 1] of an int16 or float waveform [n] or [n, channels]."""
    waveform = np.asarray(waveform)
    if waveform.ndim not in (1, 2):
        raise ValueError(f"waveform: shape {waveform.shape}, expected [n] or [n, channels]")
    if waveform.dtype == np.int16:
        samples = waveform / 32768.0
    elif np.issubdtype(waveform.dtype, np.floating):
        samples = waveform.astype(np.float64)
    else:
        raise ValueError(f"waveform: dtype {waveform.dtype}, expected int16 or floating point")
    return samples.mean(axis=1) if samples.ndim == 2 else samples


@functools.cache
def hann_window() -> np.ndarray:
    """Periodic Hann window, float64 [400]."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)


@functools.cache
def mel_matrix() -> np.ndarray:
    """HTK mel triangles (linear in mel, unit peak, no DC), float64 [257, 64]."""

    def mel(hz):
        return 1127.0 * np.log1p(np.asarray(hz) / 700.0)

    bins = mel(np.linspace(0.0, SAMPLE_RATE / 2, FFT_SIZE // 2 + 1))[:, None]
    edges = np.linspace(mel(MEL_LOW), mel(MEL_HIGH), MEL_BANDS + 2)
    lower, center, upper = edges[:-2], edges[1:-1], edges[2:]
    rising = (bins - lower) / (center - lower)
    falling = (upper - bins) / (upper - center)
    matrix = np.maximum(0.0, np.minimum(rising, falling))
    matrix[0] = 0.0
    return matrix


def to_mel(magnitude: np.ndarray) -> np.ndarray:
    """Mel bands of a magnitude spectrum: float64 [n, 257] -> float64 [n, 64].

    The dense product would run in NumPy's threads, which wait for each other at full speed and take
    the processor from the training step.
    """
    return (_sparse_mel_matrix() @ magnitude.T).T


@functools.cache
def _sparse_mel_matrix() -> scipy.sparse.csr_array:
    return scipy.sparse.csr_array(mel_matrix().T)


@functools.cache
def _kaiser_best() -> tuple[np.ndarray, np.ndarray]:
    """Right half of the interpolation filter and its forward differences, float64 [409601] each."""
    num_points = ZERO_CROSSINGS * POINTS_PER_CROSSING
    time = np.linspace(0, ZERO_CROSSINGS, num_points + 1)
    taper = np.i0(KAISER_BETA * np.sqrt(1 - (time / ZERO_CROSSINGS) ** 2)) / np.i0(KAISER_BETA)
    half = ROLLOFF * np.sinc(ROLLOFF * time) * taper
    return half, np.append(np.diff(half), 0.0)


def resample(samples: np.ndarray, sample_rate: int) -> np.ndarray:
    """float64 [n] at `sample_rate` Hz -> float64 [floor(n * 16000 / sample_rate)] at 16 kHz."""
    if not MIN_RATE <= sample_rate <= MAX_RATE:
        raise InputError(f"sampled at {sample_rate} Hz, expected {MIN_RATE} to {MAX_RATE}")
    if sample_rate == SAMPLE_RATE:
        return samples
    num_outputs = len(samples) * SAMPLE_RATE // sample_rate
    ratio = SAMPLE_RATE / sample_rate
    scale = min(1.0, ratio)
    # resampy's clock, rounding included: an output a rounding error before a sample uses that error
    # as its phase.
    clock = np.arange(num_outputs) * (1.0 / ratio)
    left = clock.astype(np.int64)
    # Outputs j and j + period sit `advance` samples apart at the same phase; small periods are
    # bundled.
    common = np.gcd(SAMPLE_RATE, sample_rate)
    period, advance = SAMPLE_RATE // common, sample_rate // common
    bundle = -(-PHASES_PER_BLOCK // period)
    period, advance = period * bundle, advance * bundle
    rows = -(-num_outputs // period)

    reach = int(ZERO_CROSSINGS / scale) + 2  # samples that the filter can touch on each side
    padded = np.zeros(reach + rows * advance + advance + 2 * reach + 2)
    padded[reach : reach + len(samples)] = samples  # sample i sits at padded[reach + i]
    outputs = np.zeros(rows * period)
    grid = outputs.reshape(rows, period)
    for start in range(0, min(period, num_outputs), PHASES_PER_BLOCK):
        stop = min(start + PHASES_PER_BLOCK, period, num_outputs)
        first, last = left[start], left[stop - 1]
        weights = np.zeros((last - first + 2 * reach + 2, stop - start))
        for column, output in enumerate(range(start, stop)):
            taps = _taps(clock[output] - left[output], scale, reach)
            offset = left[output] - first
            weights[offset : offset + len(taps), column] = taps
        windows = sliding_window_view(padded[first:], len(weights))[::advance][:rows]
        grid[:, start:stop] = windows @ weights

    # Where rounding put the clock before the sample that exact arithmetic says, the tabulated
    # filter is not the same.
    exact = np.arange(num_outputs) * sample_rate // SAMPLE_RATE
    first_row = left[np.arange(num_outputs) % period] + np.arange(num_outputs) // period * advance
    for output in np.flatnonzero((left != exact) | (first_row != left)):
        taps = _taps(clock[output] - left[output], scale, reach)
        outputs[output] = padded[left[output] : left[output] + len(taps)] @ taps
    return outputs[:num_outputs]


def _taps(fraction: float, scale: float, reach: int) -> np.ndarray:
    """Weights of samples left - reach .. left + reach + 1 for an output at left + fraction."""
    half, slope = _kaiser_best()
    step = int(scale * POINTS_PER_CROSSING)  # table points per sample; the truncation is resampy's
    taps = np.zeros(2 * reach + 2)
    for side, distance in ((-1, scale * fraction), (1, scale - scale * fraction)):
        position = distance * POINTS_PER_CROSSING
        offset = int(position)
        count = max(0, (len(half) - offset) // step)
        index = offset + step * np.arange(count)
        weights = scale * (half[index] + (position - offset) * slope[index])
        if side < 0:  # samples left, left - 1, ...
            taps[reach - count + 1 : reach + 1] = weights[::-1]
        else:  # samples left + 1, left + 2, ...
            taps[reach + 1 : reach + 1 + count] = weights
    return taps


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
