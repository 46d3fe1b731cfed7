"""Rows for alignment: the frames of a clip, its sound, and texts about what sounds in it.

Records are those of data/clip.py; masks are not read. Frame t and log-mel example t are one second.
A text is a template filled with the record's category: training draws one template, evaluation
takes all of them. A record of prediction may have `texts` of its own, or none: `texts` = ().
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from avs_jax.data import transforms
from avs_jax.data.audio import log_mel
from avs_jax.data.decode import decode_rgb, decode_text
from avs_jax.data.tokens import (
    SOURCES,
    Tokenizer,
    Tokens,
    WordTokenizer,
    count_words,
    load_tokenizer,
    tokenize,
)
from avs_jax.spec import MEL_BANDS, MEL_FRAMES, Field, InputError
from avs_jax.task import Record, Row, empty_row

FIELDS = {
    "images": Field("uint8", "B T H W 3", "input", "RGB 0..255, not normalized"),
    "log_mel": Field(
        "float32", f"B T {MEL_FRAMES} {MEL_BANDS}", "input", "VGGish log-mel (time, band), raw"
    ),
    "valid": Field("bool", "B T", "input", "the second exists; False pads", given="optional"),
    "text_ids": Field("int32", "B P L", "input", "tokens of P texts"),
    "text_mask": Field("bool", "B P L", "input", "the token exists"),
    "second": Field("int32", "B T", "target", "second of the clip, from 0"),
    "label": Field("int32", "B", "target", "category of the clip; -1: unknown", fill=-1),
    "clip_id": Field("str", "B", "metadata", "name of the clip", "evaluate"),
    "category": Field("str", "B", "metadata", "category of the clip", "evaluate"),
}
TEXT_FIELDS = ("text_ids", "text_mask")
MODALITY_FIELDS = {"frames": ("images",), "audio": ("log_mel",), "text": TEXT_FIELDS}


class PairRows:
    """Rows of clips under one configuration.

    Attributes:
      fields: of a batch: FIELDS of the modalities that are compared.
      sizes: of the fields' axes, in evaluation.
      vocab_size: token ids are below it; 0 without text, or as long as config.data.text.path, which
        a checkpoint's tokenizer needs, is empty.
    """

    def __init__(self, data: Any, modalities: Sequence[str]):
        """Reads the vocabulary or tokenizer; `data` is config.data.

        Raises:
          InputError: an invalid value, or a tokenizer that cannot be read.
        """
        self._data = data = data.copy_and_resolve_references()
        if not 1 <= data.train_frames <= data.num_frames:
            raise InputError(
                f"config.data.train_frames = {data.train_frames}: expected 1 to "
                f"config.data.num_frames = {data.num_frames}"
            )
        unused = {name for names in MODALITY_FIELDS.values() for name in names}
        unused -= {name for key in modalities for name in MODALITY_FIELDS[key]}
        self.fields: Mapping[str, Field] = {k: v for k, v in FIELDS.items() if k not in unused}
        self._has_text = "text" in modalities
        self._tokenizer = _make_tokenizer(data.text) if self._has_text else None
        self.vocab_size = self._tokenizer.size if self._tokenizer else 0
        self.sizes: Mapping[str, int] = {
            "T": data.num_frames,
            "H": data.image_size,
            "W": data.image_size,
        }
        if self._has_text:
            self.sizes |= {"P": len(data.text.templates), "L": data.text.max_tokens}

    def empty(self, train: bool) -> Row:
        sizes = dict(self.sizes)
        if train:
            sizes |= {"T": self._data.train_frames} | ({"P": 1} if self._has_text else {})
        return empty_row(self.fields, sizes, train)

    def prepare(self, record: Record, rng: np.random.Generator | None = None) -> Row:
        """One record as one row.

        Args:
          record: see data/clip.py.
          rng: for training: draws data.train_frames seconds, the augmentation and a template. None:
            all seconds, resized to a square of data.image_size, and all templates.

        Raises:
          InputError: naming the clip and the problem.
        """
        try:
            return self._prepare(record, rng)
        except (ValueError, OSError) as error:
            kind = InputError if isinstance(error, (InputError, OSError)) else ValueError
            raise kind(f"clip {decode_text(record.get('clip_id', '?'))}: {error}") from error

    def tokens(self, category: str, templates: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32 [P, L] and mask bool [P, L] of templates filled with a category."""
        name = category.replace("_", " ").replace("+", " and ")
        return self._encode([template.format(name) for template in templates])

    def num_cut(self, text: str) -> int:
        """Last word pieces of a text for which config.data.text.max_tokens has no room."""
        return self._tokenize(text).num_cut

    def _encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32 [P, L] and mask bool [P, L] of texts."""
        found = [self._tokenize(text) for text in texts]
        return np.stack([x.ids for x in found]), np.stack([x.mask for x in found])

    def _tokenize(self, text: str) -> Tokens:
        if self._tokenizer is None:
            raise InputError(
                f"config.data.text.path is empty: text.source = {self._data.text.source!r} needs "
                "the folder with the checkpoint's tokenizer.json"
            )
        return tokenize(self._tokenizer, text, self.sizes["L"])

    def _prepare(self, record: Record, rng: np.random.Generator | None) -> Row:
        data, row = self._data, self.empty(train=rng is not None)
        count = len(record["frames"])
        if not 0 < count <= data.num_frames:
            raise InputError(
                f"{count} frames, expected 1 to config.data.num_frames = {data.num_frames}"
            )
        used = np.arange(count)
        if rng is not None:
            used = np.sort(rng.permutation(count)[: data.train_frames])
        row["valid"][: len(used)], row["second"][: len(used)] = True, used
        if "log_mel" in row:
            waveform, rate = record["waveform"], int(record["sample_rate"])
            row["log_mel"][: len(used)] = log_mel(
                waveform, rate, count, data.short_audio, only=used
            )
        if "images" in row:
            self._write_images(row["images"], record, used, rng)
        category, label = decode_text(record.get("category", "")), record.get("category_label", 0)
        row["label"] = np.int32(int(label) - 1)
        if self._has_text and "texts" in record:
            if record["texts"]:
                row["text_ids"], row["text_mask"] = self._encode(record["texts"])
        elif self._has_text:
            if not category:
                raise InputError(
                    "no category, which texts are made from; config.model.pairs = 'av'"
                )
            templates = data.text.templates
            if rng is not None:
                templates = [templates[rng.integers(len(templates))]]
            row["text_ids"], row["text_mask"] = self.tokens(category, templates)
        if rng is None:
            row |= {"clip_id": decode_text(record["clip_id"]), "category": category}
        return row

    def _write_images(self, images: np.ndarray, record: Record, used, rng) -> None:
        data, size = self._data, self._data.image_size
        draw = None
        for i, t in enumerate(used):
            frame = decode_rgb(record["frames"][t])
            if rng is None:
                images[i] = transforms.resize(frame, (size, size), transforms.BILINEAR)
                continue
            if draw is None:
                draw = transforms.draw_augmentation(
                    rng, frame.shape[:2], data.num_frames, size, **data.augment
                )
            images[i] = transforms.augment_image(frame, draw, draw.image_jitter[t])


def _make_tokenizer(text: Any) -> Tokenizer | None:
    if text.path:
        return load_tokenizer(text.source, text.path)
    if text.source not in SOURCES:
        raise InputError(f"config.data.text.source = {text.source!r}: choose one of {SOURCES}")
    if text.source != "tiny":
        return None
    filled = [t.format(name) for t in text.templates for name in text.categories]
    texts = [words.replace("_", " ") for words in filled]
    return WordTokenizer(count_words(texts, text.max_words))
