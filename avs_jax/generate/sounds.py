"""The sounds of generated objects: a timbre, a loudness curve, and the mixture of several.

A sound is a harmonic source plus noise under a Gaussian spectral envelope over log frequency,
multiplied by decaying pulses, by a loudness curve and by an on/off gate with short ramps.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

FADE_SECONDS = 0.03  # ramp of a sound that starts or stops
NOISE_FLOOR_DB = -62  # dBFS, under every mixture
_OCTAVE = np.log(2.0)
_TOP_HZ = 7600  # nothing above: the log-mel ends at 7.5 kHz


@dataclasses.dataclass(frozen=True)
class Timbre:
    """Source, spectral envelope and pulses of a sound.

    Ranges are (low, high); each clip draws a value from them. The envelope is a Gaussian over log
    frequency with its center in Hz and its standard deviation in octaves.
    """

    harmonic: float  # share of the harmonic source; the rest is noise
    pitch: tuple[float, float]  # Hz
    center: tuple[float, float]  # Hz
    width: float  # octaves
    vibrato: tuple[float, float]  # (Hz, relative depth)
    pulse_rate: tuple[float, float]  # Hz; (0, 0) = continuous
    pulse_decay: float = 0.0  # seconds


@dataclasses.dataclass(frozen=True)
class Sound:
    """A timbre that sounds in some seconds of a video."""

    timbre: Timbre
    loudness: np.ndarray  # knots, two per second, in 0.4..1
    active: np.ndarray  # bool, per second


def shift_timbre(timbre: Timbre, octaves: float) -> Timbre:
    """Moves pitch and spectral center up (or down, if negative)."""
    factor = 2**octaves
    return dataclasses.replace(
        timbre,
        pitch=tuple(hertz * factor for hertz in timbre.pitch),
        center=tuple(hertz * factor for hertz in timbre.center),
    )


def synthesize(
    timbre: Timbre, num_samples: int, sample_rate: int, rng: np.random.Generator
) -> np.ndarray:
    """A sound of a timbre, float64 [num_samples], with a root mean square of 1."""
    time = np.arange(num_samples) / sample_rate
    center = rng.uniform(*timbre.center)

    def envelope(frequency: np.ndarray) -> np.ndarray:
        octaves = np.log(np.maximum(frequency, 1.0) / center) / _OCTAVE
        return np.exp(-0.5 * (octaves / timbre.width) ** 2) * (frequency < _TOP_HZ)

    pulses, notes = _pulses(timbre, time, rng)
    wave = np.zeros(num_samples)
    if timbre.harmonic > 0:
        pitch = rng.uniform(*timbre.pitch)
        rate, depth = timbre.vibrato
        bend = notes * (1 + depth * np.sin(2 * np.pi * (rate * time + rng.uniform())))
        phase = np.cumsum(pitch * bend) / sample_rate
        order = np.arange(1, max(2, int(_TOP_HZ / pitch)))
        strength = envelope(order * pitch)
        # One period as a table, looked up along the phase: far cheaper than a sum of sines.
        table_phase = np.arange(2048) / 2048
        table = strength @ np.sin(2 * np.pi * order[:, None] * table_phase + order[:, None])
        harmonic = table[(phase % 1 * 2048).astype(np.int64)]
        wave += np.sqrt(timbre.harmonic) * harmonic / np.sqrt(np.mean(harmonic**2))
    if timbre.harmonic < 1:
        spectrum = np.fft.rfft(rng.standard_normal(num_samples))
        noise = np.fft.irfft(
            spectrum * envelope(np.fft.rfftfreq(num_samples, 1 / sample_rate)), num_samples
        )
        wave += np.sqrt(1 - timbre.harmonic) * noise / np.sqrt(np.mean(noise**2))
    wave = wave * pulses
    return wave / np.sqrt(np.mean(wave**2))


def _pulses(
    timbre: Timbre, time: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Gain [n] of decaying pulses at slightly irregular times, and their pitch factors [n]."""
    if timbre.pulse_rate[1] == 0:
        return np.ones_like(time), np.ones_like(time)
    period = 1 / rng.uniform(*timbre.pulse_rate)
    count = int(time[-1] / period) + 3
    onsets = (np.arange(count) - rng.uniform()) * period
    onsets[1:] += rng.uniform(-0.15, 0.15, count - 1) * period
    current = np.searchsorted(onsets, time, side="right") - 1
    age = np.maximum(time - onsets[current], 0.0)
    attack = np.minimum(age / 0.004, 1.0)
    tones = 2 ** (rng.integers(-3, 4, count) / 12) if timbre.harmonic else np.ones(count)
    return attack * np.exp(-age / timbre.pulse_decay), tones[current]


def loudness_at(knots: np.ndarray, time: np.ndarray) -> np.ndarray:
    """A loudness curve at times in seconds: two knots per second, cosine interpolation between."""
    place = np.clip(2 * time, 0, len(knots) - 1.001)
    left = place.astype(np.int64)
    ease = 0.5 - 0.5 * np.cos(np.pi * (place - left))
    return knots[left] * (1 - ease) + knots[left + 1] * ease


def gate_at(active: np.ndarray, time: np.ndarray) -> np.ndarray:
    """1 in active seconds and 0 in others, with ramps between, at times in seconds."""
    start = np.arange(len(active))
    knots = np.stack([start + FADE_SECONDS / 2, start + 1 - FADE_SECONDS / 2], -1).ravel()
    return np.interp(time, knots, np.repeat(active, 2).astype(np.float64))


def mix(
    sounds: Sequence[Sound], level: float, sample_rate: int, rng: np.random.Generator
) -> np.ndarray:
    """Mixes sounds to int16 [n], each with the same root mean square while it is active.

    Each run of active seconds is synthesized on its own: silence costs nothing in a long video.
    The sounds have the same number of seconds, and a level in dBFS each.
    """
    num_samples = len(sounds[0].active) * sample_rate
    mixture = np.zeros(num_samples)
    for sound in sounds:
        pieces, energy, weight = [], 0.0, 0.0
        for start, stop in runs(sound.active):
            first = max(0, round((start - FADE_SECONDS / 2) * sample_rate))
            last = min(num_samples, round((stop + FADE_SECONDS / 2) * sample_rate))
            time = np.arange(first, last) / sample_rate
            gate = gate_at(sound.active, time)
            wave = synthesize(sound.timbre, last - first, sample_rate, rng)
            wave = wave * loudness_at(sound.loudness, time) * gate
            pieces.append((first, wave))
            energy, weight = energy + np.sum(wave**2), weight + np.sum(gate**2)
        for first, wave in pieces:
            gain = 10 ** (level / 20) * np.sqrt(weight / energy)
            mixture[first : first + len(wave)] += gain * wave
    return to_int16(mixture, rng)


def runs(active: np.ndarray) -> list[tuple[int, int]]:
    """The intervals [start, stop) in which a bool array [n] is true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], active, [False]]).astype(np.int8)))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def to_int16(mixture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Adds the noise floor to a mixture (full scale 1), limits it softly and quantizes it."""
    mixture = mixture + 10 ** (NOISE_FLOOR_DB / 20) * rng.standard_normal(len(mixture))
    return np.round(32767 * 0.98 * np.tanh(mixture)).astype(np.int16)
