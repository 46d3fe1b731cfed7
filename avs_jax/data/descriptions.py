"""Rows for description: one object of a clip, by its masks, and an expression that means it.

Records are those of data/expressions.py; a row is one expression. The model reads frames, masks of
the object and sound. The words are an input in training, where the model predicts each from those
before it; evaluation has none. An expression that means nothing has no object and does not count.

A record of prediction is a clip with `masks`, a mask per frame, instead of expressions.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from avs_jax.data import transforms
from avs_jax.data.audio import log_mel
from avs_jax.data.decode import decode_labels, decode_rgb, decode_text
from avs_jax.data.expressions import clip_record, make_tokenizer
from avs_jax.data.tokens import Tokenizer, tokenize
from avs_jax.spec import MEL_BANDS, MEL_FRAMES, Field, InputError
from avs_jax.task import Record, Row, empty_row

FIELDS = {
    "images": Field("uint8", "B T H W 3", "input", "RGB 0..255, not normalized"),
    "mask": Field("bool", "B T H W", "input", "pixels of the object"),
    "log_mel": Field(
        "float32", f"B T {MEL_FRAMES} {MEL_BANDS}", "input", "VGGish log-mel (time, band), raw"
    ),
    "valid": Field("bool", "B T", "input", "the frame exists; False pads", given="optional"),
    "text_ids": Field(
        "int32", "B N", "input", "tokens of the expression", "train", fill=1, given="never"
    ),
    "text_mask": Field("bool", "B N", "target", "the token exists", "train"),
    "has_object": Field("bool", "B", "target", "the expression means something"),
    "clip_id": Field("str", "B", "metadata", "name of the expression", "evaluate"),
    "object": Field("str", "B", "metadata", "what the expression means", "evaluate"),
    "text": Field("str", "B", "metadata", "the expression", "evaluate"),
}


class DescriptionRows:
    """Rows under one configuration.

    Attributes:
      fields: of a batch.
      sizes: of the fields' axes, in evaluation.
    """

    fields: Mapping[str, Field] = FIELDS

    def __init__(self, config: Any):
        self._data = data = config.data.copy_and_resolve_references()
        self._tokenizer: Tokenizer | None = None
        self.sizes: Mapping[str, int] = {
            "T": data.num_frames,
            "H": data.image_size,
            "W": data.image_size,
            "N": data.text.max_tokens,
        }

    def empty(self, train: bool) -> Row:
        return empty_row(self.fields, self.sizes, train)

    def prepare(self, record: Record, rng: np.random.Generator | None = None) -> Row:
        """The row of a record's item.

        Args:
          record: see the module's docstring.
          rng: for training: draws the augmentation, the same for frames and masks. None: resized
            to a square of data.image_size, without words as input.

        Raises:
          InputError: naming the expression and the problem.
        """
        clip = clip_record(record) if "expressions" in record else record
        try:
            return self._prepare(clip, rng)
        except (ValueError, OSError) as error:
            kind = InputError if isinstance(error, (InputError, OSError)) else ValueError
            name = decode_text(clip.get("clip_id", "?"))
            raise kind(f"expression {name}: {error}") from error

    def _prepare(self, clip: Mapping[str, Any], rng: np.random.Generator | None) -> Row:
        data, row = self._data, self.empty(train=rng is not None)
        count = len(clip["frames"])
        if not 0 < count <= data.num_frames:
            raise InputError(
                f"{count} frames, expected 1 to config.data.num_frames = {data.num_frames}"
            )
        if len(clip["masks"]) != count:
            raise InputError(f"{len(clip['masks'])} masks for {count} frames")
        row["valid"][:count] = True
        waveform, rate = clip["waveform"], int(clip["sample_rate"])
        row["log_mel"][:count] = log_mel(waveform, rate, count, data.short_audio)
        self._write_frames(row, clip, rng)
        row["has_object"] = np.bool_(not clip.get("is_null", False) and row["mask"].any())
        text = clip.get("text", "")
        if rng is not None:
            tokens = tokenize(self.tokenizer, text, data.text.max_tokens)
            return row | {"text_ids": tokens.ids, "text_mask": tokens.mask}
        name = f"{clip.get('vid', '')}/{clip.get('fid', 0)}"
        return row | {"clip_id": decode_text(clip["clip_id"]), "object": name, "text": text}

    def _write_frames(self, row: Row, clip: Mapping[str, Any], rng) -> None:
        data, side, draw = self._data, self._data.image_size, None
        for t, (image, mask) in enumerate(zip(clip["frames"], clip["masks"], strict=True)):
            frame, labels = decode_rgb(image), decode_labels(mask, 2)
            if rng is None:
                row["images"][t] = transforms.resize(frame, (side, side), transforms.BILINEAR)
                row["mask"][t] = transforms.resize(labels, (side, side), transforms.NEAREST)
                continue
            if draw is None:
                draw = transforms.draw_augmentation(
                    rng, frame.shape[:2], data.num_frames, side, **data.augment
                )
            row["images"][t] = transforms.augment_image(frame, draw, draw.image_jitter[t])
            row["mask"][t] = transforms.augment_labels(labels, draw) == 1

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the configuration; InputError if it names none."""
        if self._tokenizer is None:
            self._tokenizer = make_tokenizer(self._data.text)
        return self._tokenizer
