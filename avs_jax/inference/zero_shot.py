"""Classes without training for them: which text is closest to the frames and the sound (`align`).

  w_c = unit(mean over templates p of unit(text(p filled with c)))
  score of c = softmax_c(scale * mean over frames and sound of cos(x, w_c))

`predict --video` with a checkpoint of task `align` that has text scores the categories of its
configuration, or every --text given. The output is

  results.json    classes, best first, of the whole video; the best class of every second;
                  cut_word_pieces of classes with texts too long for the model

Templates are config.data.text.templates. Source: CLIP (Radford et al., ICML 2021), section 3.1.4.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from avs_jax.data.tokens import cut_note
from avs_jax.data.video import probe, read_windows, tracked_windows
from avs_jax.files import atomic_folder
from avs_jax.inference.embedding_search import MEDIA, embed, record_of
from avs_jax.inference.predictor import Predictor
from avs_jax.losses.alignment import MAX_SCALE
from avs_jax.models.align import PAIRS
from avs_jax.spec import InputError, UsageError

NUM_SHOWN = 5
DECIMALS = 4


class ZeroShot:
    """The classes of one model, embedded once.

    Attributes:
      names: of the classes, K.
      cut: per class, word pieces that its texts lose at most; see config.data.text.max_tokens.
    """

    def __init__(self, predictor: Predictor, names: Sequence[str] = ()):
        """Embeds `names`, by default config.data.text.categories.

        Raises:
          InputError: the model has no text, or no names.
        """
        pairs = predictor.task.model.pairs
        partners = {name for pair in PAIRS[pairs] if "text" in pair for name in pair}
        if not partners:
            raise InputError(f"config.model.pairs = {pairs!r}: classes need text, as in 'avt'")
        text = predictor.config.data.text
        self.names = list(names or text.categories)
        if not self.names:
            raise UsageError("no classes: --text=... names one, and may be given several times")
        self._modalities = [name for name in MEDIA if name in partners]
        filled = [[t.format(name.replace("_", " ")) for t in text.templates] for name in self.names]
        num_cut = predictor.task.rows.num_cut
        self.cut = [max(map(num_cut, texts)) for texts in filled]
        found = [embed(predictor, record_of(texts=texts))["text_embed"] for texts in filled]
        self._classes = np.stack(found)
        self._predictor = predictor
        log_scale = float(predictor.variables[0]["logit_scale"])
        self._scale = math.exp(min(log_scale, math.log(MAX_SCALE)))

    def scores(self, found: Mapping[str, np.ndarray], kind: str = "embed") -> np.ndarray:
        """float32 [..., K], of {modality}_{kind} [..., D]; rows sum to 1."""
        cosines = [found[f"{name}_{kind}"] @ self._classes.T for name in self._modalities]
        logits = self._scale * np.mean(cosines, axis=0, dtype=np.float32)
        shifted = np.exp(logits - logits.max(-1, keepdims=True))
        return shifted / shifted.sum(-1, keepdims=True)

    def name_objects(
        self, frames: np.ndarray, masks: np.ndarray, waveform: np.ndarray, sample_rate: int
    ) -> list[dict[str, Any]]:
        """What sounds in every second, from the box of its mask and from the sound.

        Args:
          frames, masks: uint8 [T, H, W, 3] and bool [T, H, W].
          waveform: int16 [T * sample_rate, channels].

        Returns:
          class and class_score per second, or nothing where the mask is empty.
        """
        length, rows = self._predictor.config.data.num_frames, []
        crops = [_crop(*pair) for pair in zip(frames, masks, strict=True)]
        for start in range(0, len(crops), length):
            sound = waveform[start * sample_rate : (start + length) * sample_rate]
            record = record_of(crops[start : start + length], sound, sample_rate)
            rows.append(self.scores(embed(self._predictor, record), "seconds"))
        scores = np.concatenate(rows)[: len(crops)]
        return [
            {"class": self.names[k], "class_score": round(float(row[k]), DECIMALS)}
            if mask.any()
            else {}
            for row, k, mask in zip(scores, scores.argmax(1), masks, strict=True)
        ]


def _crop(frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The frame within the box of its mask; the whole frame where the mask is empty."""
    if not mask.any():
        return frame
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return frame[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def classify_video(
    predictor: Predictor,
    path: str | os.PathLike,
    output: str | os.PathLike,
    text: Sequence[str] = (),
) -> list[str]:
    """Writes results.json of a video; returns lines to print."""
    classes, video = ZeroShot(predictor, text), probe(path)
    parts = []
    windows = read_windows(path, predictor.config.data.num_frames)
    for frames, waveform, _ in tracked_windows(windows, video):
        found = embed(predictor, record_of(frames, waveform, video.sample_rate))
        parts.append(classes.scores(found, "seconds")[: len(frames)])
    seconds = np.concatenate(parts)
    whole = seconds.mean(0)
    best = np.argsort(-whole, kind="stable")[:NUM_SHOWN]
    with atomic_folder(output) as folder:
        results = {
            "video": str(path),
            "classes": {classes.names[k]: round(float(whole[k]), DECIMALS) for k in best},
            "cut_word_pieces": {
                name: n for name, n in zip(classes.names, classes.cut, strict=True) if n
            },
            "templates": list(predictor.config.data.text.templates),
            "seconds": [
                {"second": t, "class": classes.names[k], "score": round(float(row[k]), DECIMALS)}
                for t, (row, k) in enumerate(zip(seconds, seconds.argmax(1), strict=True))
            ],
        }
        (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    limit = predictor.config.data.text.max_tokens
    notes = [cut_note(classes.cut[k], "data.text.max_tokens", limit) for k in best]
    lines = [
        f"{classes.names[k]}: {whole[k]:.3f}{note}" for k, note in zip(best, notes, strict=True)
    ]
    return [*lines, f"{output}: results.json"]
