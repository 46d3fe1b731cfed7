"""One record to one row of a batch for grounding in time: features, words, windows, saliency.

A record is one query on one video, raw, as the TFDS builders store it. Features are arrays or .npy
bytes, and empty where there are none; so are annotations:

  qid, vid, query, duration     text; the last in seconds
  domain                        text: a group of queries that is scored by itself, too
  video, clip_seconds           list of arrays [n_i, d_i]; seconds that each row stands for
  text, audio                   [words, d], [n, d]
  energy                        [n], log-RMS of each clip's sound
  windows                       [W, 2], start and end in seconds
  saliency_clips, saliency      [c] and [c, A], A annotators' scores 0..4 of some (QVHighlights)
  ratings                       [n, A], scores 1..5 of every clip (TVSum)

What FIELDS does not say of a row:

  video               x / (|x| + 1e-5) per clip, the kinds side by side, then each clip's end points
                      i/L' and i/L' + 1/L', L' being the clips left after cutting to the shortest
  target_spans        (center, width) of the windows divided by L' * clip_seconds
  saliency_labels     sum over annotators, 0 where a clip is not listed; ratings are scaled to 0..12
  saliency_pos_pairs, saliency_neg_pairs
                      clips to rank: the best listed one over the worst, and any listed one over any
                      other; both are -1 where no clip is listed

Source: QD-DETR (repository wjun0830/QD-DETR, start_end_dataset.py). Departures:

- A listed clip behind the last row of features has no label, and a pair takes the last row in its
  place. The reference appends a label without a clip, and its second pair may point to padding.
- Of clips with equal scores a pair draws any. The reference takes what an unstable sort leaves.

As in the reference, windows are divided by L' * clip_seconds but predictions multiplied by the
duration; the two are equal where there is a row of features for every clip.
"""

import dataclasses
import itertools
import zlib
from typing import Any

import numpy as np

from avs_jax.array_files import parse_npy
from avs_jax.data.decode import decode_text
from avs_jax.spec import Field, InputError
from avs_jax.task import Record, Row, empty_row

NORM_EPSILON = 1e-5
SILENCE = 1e-5  # RMS that a silent clip is given
MAX_RATING = 5  # the lowest is 1
MAX_LABEL = 12  # three annotators' 4
CHOICES = {
    "normalize": ("each", "joined", "none"),
    "saliency": ("annotated", "windows"),
    "num_pairs": (1, 2),
}
FIELDS = {
    "video": Field("float32", "B L V", "input", "features of each clip"),
    "video_mask": Field("bool", "B L", "input", "the clip exists"),
    "text": Field("float32", "B W D", "input", "features of each word of the query"),
    "text_mask": Field("bool", "B W", "input", "the word exists"),
    "audio": Field("float32", "B L A", "input", "features of the sound", given="optional"),
    "energy": Field("float32", "B L", "input", "log-RMS of the sound", given="optional"),
    "text_id": Field("int32", "B", "target", "equal for equal queries"),
    "target_spans": Field("float32", "B N 2", "target", "(center, width), shares of the video"),
    "target_valid": Field("bool", "B N", "target", "the window exists"),
    "saliency_pos_pairs": Field("int32", "B P", "target", "better clips; -1: no pair", fill=-1),
    "saliency_neg_pairs": Field("int32", "B P", "target", "worse clips; -1: no pair", fill=-1),
    "saliency_labels": Field("float32", "B L", "target", "score summed over annotators"),
    "qid": Field("str", "B", "metadata", "name of the query; empty: no query", "evaluate"),
    "vid": Field("str", "B", "metadata", "name of the video", "evaluate"),
    "query": Field("str", "B", "metadata", "text of the query", "evaluate"),
    "domain": Field("str", "B", "metadata", "the query's group; empty: none", "evaluate"),
    "duration": Field("str", "B", "metadata", "of the video in seconds, a float", "evaluate"),
    "windows": Field("str", "B", "metadata", "all windows, float64 [n, 2] in seconds", "evaluate"),
    "cut_words": Field("str", "B", "metadata", "number of last words left out", "evaluate"),
    "ratings": Field(
        "str", "B", "metadata", "every score, float32 [clips, annotators]", "evaluate"
    ),
}


@dataclasses.dataclass(frozen=True)
class MomentRows:
    """Makes rows of records; every attribute is a key of the configuration.

    Attributes:
      max_clips, max_words, max_windows: L, W and N. Text is cut to W words; of more than N windows
        training draws N, evaluation takes the first.
      video_dims: width of each kind of video features, in the record's order.
      text_dim, audio_dim: widths; with audio_dim 0 rows have no sound.
      energy: whether rows have the field of that name.
      clip_seconds: must be the records'.
      normalize: "each" kind of video features by itself, all of them "joined", or "none"; sound is
        normalized wherever video is.
      normalize_text, endpoints: whether to normalize words, and to append end points.
      saliency: "annotated", or "windows": clips inside a window count 1, for data without scores.
      num_pairs: P; 1 has no pair of a listed and another clip.
      num_annotators: A.
    """

    max_clips: int = 75
    max_words: int = 32
    max_windows: int = 5
    video_dims: tuple[int, ...] = (2304, 512)
    text_dim: int = 512
    audio_dim: int = 0
    energy: bool = False
    clip_seconds: float = 2.0
    normalize: str = "each"
    normalize_text: bool = True
    endpoints: bool = True
    saliency: str = "annotated"
    num_pairs: int = 2
    num_annotators: int = 3

    def __post_init__(self):
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise InputError(f"{name} is {getattr(self, name)!r}, expected one of {choices}")

    @property
    def fields(self) -> dict[str, Field]:
        """What a batch holds: FIELDS without those that are turned off."""
        off = {"audio": not self.audio_dim, "energy": not self.energy}
        return {name: field for name, field in FIELDS.items() if not off.get(name)}

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes of the letters of the fields' axes."""
        more = 2 * self.endpoints
        sizes = {"L": self.max_clips, "W": self.max_words, "D": self.text_dim}
        sizes |= {"V": sum(self.video_dims) + more, "A": self.audio_dim + more}
        return sizes | {"N": self.max_windows, "P": self.num_pairs}

    def empty(self, train: bool) -> Row:
        """A row without clips, words and query."""
        return empty_row(self.fields, self.sizes, train)

    def prepare(self, record: Record, rng: np.random.Generator | None = None) -> Row:
        """The row of a record; rng draws windows and pairs, None prepares it as it is evaluated.

        Raises:
          InputError: naming the query, what is wrong with it and the key of the configuration.
        """
        try:
            return self._prepare(record, rng)
        except ValueError as error:
            raise InputError(f"query {decode_text(record.get('qid', '?'))}: {error}") from error

    def truth(self, record: Record) -> Row:
        """A record's metadata, which scores are computed against.

        `ratings` is 0 for clips that are not listed; it is empty where nobody scored the video.
        """
        row: Row = {name: decode_text(record[name]) for name in ("qid", "vid", "query")}
        row["domain"] = decode_text(record.get("domain", ""))
        row["duration"] = float(record["duration"])
        row["windows"] = np.asarray(record["windows"], np.float64).reshape(-1, 2)
        row["ratings"] = self._annotations(record["ratings"], "ratings")
        scores = self._annotations(record["saliency"], "saliency")
        if scores.size:
            # A clip that the video ends in the middle of is not scored.
            num_clips = int(row["duration"] / self.clip_seconds)
            clips = np.asarray(record["saliency_clips"])
            row["ratings"] = np.zeros((num_clips, self.num_annotators), np.float32)
            row["ratings"][clips[clips < num_clips]] = scores[clips < num_clips]
        return row

    def _prepare(self, record: Record, rng: np.random.Generator | None) -> Row:
        row = self.empty(train=rng is not None)
        video, audio = self._features(record)
        num_clips = len(video)
        row["video"][:num_clips], row["video_mask"][:num_clips] = video, True
        if audio is not None:
            row["audio"][:num_clips] = audio
        if self.energy:
            energy = np.asarray(record["energy"], np.float32)
            if len(energy) < num_clips:
                raise InputError(f"energy of {len(energy)} clips for {num_clips}, and energy is on")
            row["energy"][:num_clips] = energy[:num_clips]
        text = _decode_array(record["text"], "text", self.text_dim, "text_dim")
        cut_words, text = max(0, len(text) - self.max_words), text[: self.max_words]
        row["text"][: len(text)] = _normalized(text) if self.normalize_text else text
        row["text_mask"][: len(text)] = True
        row["text_id"] = np.int32(zlib.crc32(decode_text(record["query"]).encode()) & 0x7FFFFFFF)
        self._place_windows(row, record, num_clips, rng)
        self._place_saliency(row, record, num_clips, rng)
        return row if rng is not None else row | self.truth(record) | {"cut_words": cut_words}

    def _features(self, record: Record) -> tuple[np.ndarray, np.ndarray | None]:
        """Video [n, V] and sound [n, A], cut, normalized and with end points."""
        seconds, duration = float(record["clip_seconds"]), float(record["duration"])
        if not np.isclose(seconds, self.clip_seconds):
            raise InputError(f"a clip is {seconds:g} s, but clip_seconds is {self.clip_seconds:g}")
        most = self.max_clips
        if duration >= (most + 1) * seconds:
            raise InputError(f"{duration:g} s are more than max_clips = {most} of {seconds:g} s")
        count, dims = len(record["video"]), tuple(self.video_dims)
        if count != len(dims):
            raise InputError(f"{count} kinds of video features, but video_dims = {dims}")
        kinds = [
            _decode_array(data, f"video features {i}", dim, "video_dims")
            for i, (data, dim) in enumerate(zip(record["video"], dims, strict=True))
        ]
        audio = None
        if self.audio_dim:
            audio = _decode_array(record["audio"], "audio features", self.audio_dim, "audio_dim")
        num_clips = min(most, *map(len, kinds), most if audio is None else len(audio))
        kinds = [kind[:num_clips] for kind in kinds]
        if self.normalize == "each":
            kinds = [_normalized(kind) for kind in kinds]
        video = np.concatenate(kinds, axis=1)
        if self.normalize == "joined":
            video = _normalized(video)
        if audio is not None:
            audio = audio[:num_clips]
            audio = audio if self.normalize == "none" else _normalized(audio)
        if self.endpoints:
            start = np.arange(num_clips, dtype=np.float32) / np.float32(num_clips)
            ends = np.stack([start, start + np.float32(1 / num_clips)], axis=1)
            video = np.concatenate([video, ends], axis=1)
            audio = None if audio is None else np.concatenate([audio, ends], axis=1)
        return video, audio

    def _place_windows(
        self, row: Row, record: Record, num_clips: int, rng: np.random.Generator | None
    ) -> None:
        windows = np.asarray(record["windows"], np.float32).reshape(-1, 2)
        if len(windows) > self.max_windows:
            order = np.arange(len(windows)) if rng is None else rng.permutation(len(windows))
            windows = windows[order[: self.max_windows]]
        start, end = (windows / np.float32(num_clips * self.clip_seconds)).T
        row["target_spans"][: len(windows)] = np.stack([(start + end) / 2, end - start], axis=1)
        row["target_valid"][: len(windows)] = True

    def _place_saliency(
        self, row: Row, record: Record, num_clips: int, rng: np.random.Generator | None
    ) -> None:
        clips, labels = self._listed_clips(record, num_clips)
        inside = clips < num_clips
        row["saliency_labels"][clips[inside]] = labels[inside]
        if not len(clips):
            return
        others = np.setdiff1d(np.arange(num_clips), clips)
        pairs = [(clips[labels == labels.max()], clips[labels == labels.min()]), (clips, others)]
        if not len(others):
            pairs[1] = pairs[0]
        elif self.saliency == "windows":
            pairs[0] = pairs[1]
        for i, (better, worse) in enumerate(pairs[: self.num_pairs]):
            for name, choices in (("pos", better), ("neg", worse)):
                clip = choices[0] if rng is None else rng.choice(choices)
                row[f"saliency_{name}_pairs"][i] = min(clip, num_clips - 1)

    def _listed_clips(self, record: Record, num_clips: int) -> tuple[np.ndarray, np.ndarray]:
        """Clips that have a label, int [c], and their labels, float32 [c]."""
        if self.saliency == "windows":
            start = np.arange(num_clips) * self.clip_seconds
            windows = np.asarray(record["windows"], np.float64).reshape(-1, 2)
            overlap = np.minimum(start[:, None] + self.clip_seconds, windows[None, :, 1])
            overlap = overlap - np.maximum(start[:, None], windows[None, :, 0])
            clips = np.flatnonzero((overlap >= self.clip_seconds / 2).any(axis=1))
            return clips, np.ones(len(clips), np.float32)
        ratings = self._annotations(record["ratings"], "ratings")[:num_clips]
        if ratings.size:
            highest = (MAX_RATING - 1) * self.num_annotators
            labels = (ratings - 1).sum(axis=1) / np.float32(highest) * np.float32(MAX_LABEL)
            return np.arange(len(ratings)), labels
        scores = self._annotations(record["saliency"], "saliency")
        return np.asarray(record["saliency_clips"], np.int64), scores.sum(axis=1)

    def _annotations(self, values: Any, name: str) -> np.ndarray:
        """Scores float32 [n, A] of a record, n = 0 where nobody gave any."""
        scores = np.asarray(values, np.float32)
        if not scores.size:
            return np.zeros((0, self.num_annotators), np.float32)
        if scores.ndim != 2 or scores.shape[1] != self.num_annotators:
            shapes = f"{list(scores.shape)}, expected [n, {self.num_annotators}]"
            raise InputError(f"{name} are {shapes} as num_annotators says")
        return scores


def log_rms(waveform: np.ndarray, sample_rate: int, num_clips: int, seconds: float) -> np.ndarray:
    """Energy of each clip's sound: log(RMS + SILENCE) of samples in -1..1, float32 [num_clips].

    The waveform is int16 or float [n] or [n, channels]; clips of that many seconds past its end
    are silent.
    """
    samples = np.asarray(waveform, np.float64) / (32768 if waveform.dtype == np.int16 else 1)
    samples = samples if samples.ndim == 1 else samples.mean(axis=1)
    edges = np.round(np.arange(num_clips + 1) * seconds * sample_rate).astype(int)
    bounds = list(itertools.pairwise(edges))
    sums = np.array([np.square(samples[start:end]).sum() for start, end in bounds])
    rms = np.sqrt(sums / np.maximum(1, np.diff(edges)))
    return np.log(rms + SILENCE).astype(np.float32)


def decode_array(data: Any) -> np.ndarray:
    """Features of a record, which are an array or .npy bytes, as float32."""
    if isinstance(data, bytes):
        data = parse_npy(data)
    return np.asarray(data, np.float32)


def _decode_array(data: Any, name: str, width: int, key: str) -> np.ndarray:
    """Features float32 [n, width], n > 0, of an array or of .npy bytes."""
    if isinstance(data, bytes) and not data:
        raise InputError(f"the record has no {name}, but {key} asks for it")
    array = decode_array(data)
    if array.ndim != 2 or not len(array) or array.shape[1] != width:
        raise InputError(f"{name} are {list(array.shape)}, expected [n, {width}] as {key} says")
    return array


def _normalized(features: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(features, axis=-1, keepdims=True)
    return features / (norm + np.float32(NORM_EPSILON))
