"""Clip features of a video with sound, and word features of a query, as config.data.features says.

  frames   "colors"    see data/clip_features.py
           "backbone"  res5 of an image backbone, its mean over positions and frames
  sound    "mel"       see data/clip_features.py
           "vggish"    the mean of VGGish's map over time, a value per band and channel; or the
                       mean of its embeddings, where the backbone has an embedding
           ""          none
  text     "hashed"    see data/clip_features.py
           "encoder"   every token of a text encoder, converted RoBERTa or that of a `refer` run

Weights are those of a whole model (a run's working directory), or of one converted component. Every
clip of config.data.clip_seconds has a row; a last part of a clip counts as one.

To add a kind of features, write its class and a row in FRAMES, SOUND or TEXT.
"""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from avs_jax.data import clip_features, transforms
from avs_jax.data.moments import log_rms
from avs_jax.data.tokens import WordTokenizer, load_tokenizer, tokenize
from avs_jax.data.video import Video, probe, read_windows, tracked_windows
from avs_jax.models.inputs import prepare_images
from avs_jax.models.parts import find_part, make_part
from avs_jax.runtime.checkpoint import Checkpoint
from avs_jax.spec import InputError

PEAKS_PER_SECOND = 20


class VideoFeatures(NamedTuple):
    """Features of a video's n clips.

    Attributes:
      video: what the file holds.
      frames: float32 [n, d].
      sound: float32 [n, d], or None.
      energy: float32 [n], log-RMS of the sound.
      peaks: float32 [n * clip_seconds * PEAKS_PER_SECOND], largest amplitude of the sound, 0..1;
        shorter where the video ends within a clip.
    """

    video: Video
    frames: np.ndarray
    sound: np.ndarray | None
    energy: np.ndarray
    peaks: np.ndarray


class Colors:
    """A color histogram per clip."""

    def __init__(self, settings: Mapping[str, Any]):
        del settings

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """uint8 [T, H, W, 3] -> float32 [d]."""
        return clip_features.color_histogram(frames)


class ImageBackbone:
    """The mean of res5 of a trained image backbone."""

    def __init__(self, settings: Mapping[str, Any]):
        module, section, variables, config = load_component("backbone", settings["frame_weights"])
        backbone = make_part("backbone", module, section, dtype="float32")
        self._side = config.data.image_size if "data" in config else settings["image_size"]

        @jax.jit
        def encode(images):
            maps = backbone.apply(variables, prepare_images(images[None]), False)
            if not isinstance(maps, Mapping):
                raise InputError(
                    f"frame_weights = {settings['frame_weights']!r}: the backbone "
                    f"{section['name']!r} makes no maps"
                )
            return maps["res5"].astype(jnp.float32).mean((0, 1, 2))

        self._encode = encode

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """uint8 [T, H, W, 3] -> float32 [d]."""
        size = (self._side, self._side)
        resized = [transforms.resize(frame, size, transforms.BILINEAR) for frame in frames]
        return np.asarray(self._encode(np.stack(resized)))


class MelStatistics:
    """Mean and deviation of each mel band."""

    def __init__(self, settings: Mapping[str, Any]):
        del settings

    def __call__(self, log_mel: np.ndarray) -> np.ndarray:
        """float32 [n, 96, 64] -> float32 [d]."""
        return clip_features.mel_statistics(log_mel)


class AudioBackbone:
    """The mean of VGGish's map over time, or of its embeddings."""

    def __init__(self, settings: Mapping[str, Any]):
        module, section, variables, config = load_component(
            "audio_backbone", settings["sound_weights"]
        )
        backbone = make_part("audio_backbone", module, section)
        mean, std = 0.0, 1.0
        if "model" in config:
            mean, std = config.model.audio_mean, config.model.audio_std

        @jax.jit
        def encode(log_mel):
            encoded = backbone.apply(variables, (log_mel - mean) / std).astype(jnp.float32)
            return encoded.mean((0, 1) if encoded.ndim == 4 else 0).reshape(-1)

        self._encode = encode

    def __call__(self, log_mel: np.ndarray) -> np.ndarray:
        """float32 [n, 96, 64] -> float32 [d]."""
        return np.asarray(self._encode(log_mel))


class HashedWords:
    """A vector per word."""

    def __init__(self, settings: Mapping[str, Any]):
        self._dim, self._max_words = settings["text_dim"], settings["max_words"]

    def __call__(self, text: str) -> np.ndarray:
        """-> float32 [words, d]."""
        return clip_features.hashed_words(text, self._dim)

    def num_cut(self, text: str) -> int:
        """Words of a text beyond config.data.max_words, which rows leave out."""
        return max(0, len(self(text)) - self._max_words)


class TextTokens:
    """The tokens of a trained text encoder, with <s> and </s>."""

    def __init__(self, settings: Mapping[str, Any]):
        module, section, variables, config = load_component("text", settings["text_weights"])
        encoder = make_part("text", module, section)
        words = config.get("data", {}).get("text", {}).get("words", ())
        if words:
            self._tokenizer = WordTokenizer(words)
        else:
            self._tokenizer = load_tokenizer(section["name"], settings["tokenizer"])
        self._max_tokens = settings["max_words"]
        self._encode = jax.jit(lambda ids, mask: encoder.apply(variables, ids[None], mask[None])[0])

    def __call__(self, text: str) -> np.ndarray:
        """-> float32 [tokens, d]; InputError without a word."""
        tokens = tokenize(self._tokenizer, text, self._max_tokens)
        if not tokens.num_pieces:
            raise InputError(f"the text {text!r} has no word")
        encoded = np.asarray(self._encode(tokens.ids, tokens.mask), np.float32)
        return encoded[tokens.mask]

    def num_cut(self, text: str) -> int:
        """Pieces of a text beyond config.data.max_words, <s> and </s> among it."""
        return tokenize(self._tokenizer, text, self._max_tokens).num_cut


FRAMES = {"colors": Colors, "backbone": ImageBackbone}
SOUND = {"": None, "mel": MelStatistics, "vggish": AudioBackbone}
TEXT = {"hashed": HashedWords, "encoder": TextTokens}
WEIGHT_KEYS = {  # of config.data.features, by section of config.model
    "backbone": "frame_weights",
    "audio_backbone": "sound_weights",
    "text": "text_weights",
}


def load_component(part: str, path: str) -> tuple[type, dict, dict, ConfigDict]:
    """A component of a whole model, or one that was converted by itself.

    Args:
      part: key of WEIGHT_KEYS.
      path: a run's working directory, one of its steps, or converted weights.

    Returns:
      module class, section of the configuration, variables and the whole configuration.

    Raises:
      InputError: no path, or the checkpoint holds no such part.
    """
    key = WEIGHT_KEYS[part]
    if not path:
        raise InputError(
            f"config.data.features.{key} is empty: the weights of the {part}, such as a run's "
            "working directory"
        )
    checkpoint = Checkpoint.find(path)
    config = checkpoint.config
    params, batch_stats = checkpoint.variables()
    if config.get("part") == part:
        section = config[part]
    elif "model" in config and part in config.model and part in params:
        section = config.model[part]
        params, batch_stats = params[part], batch_stats.get(part, {})
    else:
        raise InputError(f"config.data.features.{key}: {checkpoint.directory} holds no {part}")
    section = section.to_dict()
    variables = {"params": params} | ({"batch_stats": batch_stats} if batch_stats else {})
    return find_part(part, section), section, jax.device_put(variables), config


class ClipFeatures:
    """Makes the features of config.data.features; weights are loaded once."""

    def __init__(self, config: ConfigDict):
        """Prepares; reads `data` of the whole configuration.

        Raises:
          InputError: the recipe has no features of its own, an unknown kind, or weights that do not
            fit.
        """
        data = config.data
        if "features" not in data:
            raise InputError(
                f"{config.name} has no config.data.features: its features (video_dims = "
                f"{tuple(data.video_dims)}) are not made here; --arrays takes them"
            )
        settings = data.features.to_dict()
        settings |= {"text_dim": data.text_dim, "max_words": data.max_words}
        tables = {"frames": FRAMES, "sound": SOUND, "text": TEXT}
        for key, table in tables.items():
            if settings[key] not in table:
                raise InputError(
                    f"config.data.features.{key} = {settings[key]!r}: choose one of {sorted(table)}"
                )
        if data.clip_seconds != int(data.clip_seconds):
            raise InputError(f"config.data.clip_seconds = {data.clip_seconds}: not whole seconds")
        self._seconds, self._data = int(data.clip_seconds), data
        self._frames = FRAMES[settings["frames"]](settings)
        sound = SOUND[settings["sound"]]
        self._sound = None if sound is None else sound(settings)
        self._text = TEXT[settings["text"]](settings)

    def video(self, path: str | os.PathLike, is_shown: bool = False) -> VideoFeatures:
        """Features of a file.

        Args:
          is_shown: progress counts its seconds.

        Raises:
          VideoError: not a whole video with sound.
          InputError: it is too long for config.data.max_clips, or features have another width than
            the configuration says.
        """
        video = probe(path)
        count = -(-video.num_seconds // self._seconds)
        if count > self._data.max_clips:
            raise InputError(
                f"{path}: {video.num_seconds} s are {count} clips of {self._seconds} s, more than "
                f"config.data.max_clips = {self._data.max_clips}"
            )
        frames, sound, energy, peaks = [], [], [], []
        windows = read_windows(path, self._seconds)
        for images, waveform, _ in tracked_windows(windows, video) if is_shown else windows:
            rate = video.sample_rate
            frames.append(self._frames(images))
            if self._sound is not None:
                log_mel = clip_features.clip_log_mel(waveform, rate, self._seconds)
                sound.append(self._sound(log_mel))
            energy.append(log_rms(waveform, rate, 1, self._seconds))
            peaks.append(_peaks(waveform, len(images) * PEAKS_PER_SECOND))
        stacked = np.stack(frames).astype(np.float32)
        heard = np.stack(sound).astype(np.float32) if sound else None
        self._check_widths(stacked, heard)
        return VideoFeatures(video, stacked, heard, np.concatenate(energy), np.concatenate(peaks))

    def words(self, text: str) -> np.ndarray:
        """Features of the words of a query, float32 [words, text_dim].

        Raises:
          InputError: the text has no word, or the features have another width.
        """
        words, expected = self._text(text), self._data.text_dim
        if words.shape[1] != expected:
            raise InputError(
                f"config.data.features gives text_dim = {words.shape[1]}, but config.data.text_dim "
                f"= {expected}"
            )
        return words

    def num_cut(self, text: str) -> int:
        """Last words, or word pieces, of a query that the model does not read."""
        return self._text.num_cut(text)

    def _check_widths(self, frames: np.ndarray, sound: np.ndarray | None) -> None:
        widths = (frames.shape[1],), 0 if sound is None else sound.shape[1]
        expected = tuple(self._data.video_dims), self._data.audio_dim
        if widths != expected:
            raise InputError(
                f"config.data.features gives video_dims = {widths[0]} and audio_dim = {widths[1]}, "
                f"but config.data has {expected[0]} and {expected[1]}"
            )


def _peaks(waveform: np.ndarray, count: int) -> np.ndarray:
    """Largest amplitudes, 0..1, of `count` equal parts of a waveform int16 [n, channels]."""
    amplitude = np.abs(waveform.astype(np.float32)).max(axis=1) / 32768
    edges = np.linspace(0, len(amplitude), count + 1).astype(int)[:-1]
    return np.maximum.reduceat(amplitude, edges)
