"""Rows of expressions: one expression of a clip's record becomes a row of a batch.

A row is that of its clip (data/clip.py) with the masks of the object that the expression means, all
empty where it means nothing, and the expression's tokens (data/tokens.py).

A record is a clip with its expressions (tfds_builders/refer_clips.py) and `item`, which of them the
row is about. Controls of an evaluation, and prediction, replace the expression by a field `text`.

The ground truth of an evaluation is the mask resized to the score size bilinearly, every pixel
above 0: as Ref-AVS does it, masks grow by up to half a source pixel.
"""

import functools
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from avs_jax.data import transforms
from avs_jax.data.clip import ClipRows
from avs_jax.data.decode import decode_labels, decode_rgb, decode_text
from avs_jax.data.records import record_name
from avs_jax.data.tokens import Tokenizer, Tokens, WordTokenizer, load_tokenizer, tokenize
from avs_jax.spec import MEL_BANDS, MEL_FRAMES, Field, InputError
from avs_jax.task import Record, Row

FIELDS = {
    "text_ids": Field("int32", "B N", "input", "tokens of the expression, 1 after its end", fill=1),
    "text_mask": Field("bool", "B N", "input", "the token exists"),
    "asked_ids": Field(
        "int32",
        "B E N",
        "input",
        "tokens of the asked phrases, whose masks are trained: the first of phrase_ids",
        "train",
        1,
        "never",
    ),
    "asked_mask": Field("bool", "B E N", "input", "the token exists", "train", given="never"),
    "object_id": Field(
        "int32", "B", "target", "equal for expressions of the same object, -1: of none", "train"
    ),
    "phrase_ids": Field(
        "int32",
        "B P N",
        "input",
        "tokens of the clip's phrases, the row's expression first",
        "train",
        1,
        "never",
    ),
    "phrase_mask": Field("bool", "B P N", "input", "the token exists", "train", given="never"),
    "phrase_targets": Field(
        "bool", "B T P H W", "target", "the pixels of what the expression means", "train"
    ),
    "clip_log_mel": Field(
        "float32",
        f"B F {MEL_FRAMES} {MEL_BANDS}",
        "input",
        "log-mel of seconds of the clip",
        "train",
        given="never",
    ),
    "clip_has_sound": Field("bool", "B F", "input", "the second exists", "train", given="never"),
    "clip_seconds": Field("int32", "B F", "input", "place of the second", "train", given="never"),
    "phrase_objects": Field("int32", "B P", "target", "as object_id, of each expression", "train"),
    "phrase_valid": Field("bool", "B P", "target", "the expression exists", "train"),
    "place": Field("int32", "B", "target", "among the expressions of its clip", "evaluate"),
    "is_null": Field("bool", "B", "target", "the expression means nothing", "evaluate"),
    "is_seen": Field("bool", "B", "target", "its class occurs in train", "evaluate"),
    "kind": Field(
        "int32", "B", "target", "1 + place in spec.EXPRESSION_KINDS, or 0: unknown", "evaluate"
    ),
    "has_text": Field("bool", "B", "target", "the expression is not empty", "evaluate"),
    "is_cut": Field("bool", "B", "target", "it has more tokens than fit", "evaluate"),
    "text": Field("str", "B", "metadata", "the expression", "evaluate"),
}


class ExpressionRows(ClipRows):
    """Rows of expressions under one configuration; see the base class."""

    def __init__(self, config: Any):
        super().__init__(config)
        self._text = config.data.text.copy_and_resolve_references()
        count = self._num_phrases = self._text.get("num_phrases", 0)
        self._num_asked = self._text.get("num_asked", 1)
        unused = () if count else ("phrase_", "clip_")
        unused += ("asked_",) if self._num_asked == 1 else ()
        own = {k: v for k, v in FIELDS.items() if not k.startswith(unused)}
        self.fields: Mapping[str, Field] = {**self.fields, **own}
        self._num_seconds = self._text.get("num_seconds", 0) or config.data.num_frames
        if not 0 < self._num_seconds <= config.data.num_frames:
            raise InputError(
                f"config.data.text.num_seconds is {self._num_seconds}, expected 0 (all) to "
                f"config.data.num_frames = {config.data.num_frames}"
            )
        more = {"N": self._text.max_tokens, "P": count, "F": self._num_seconds}
        more["E"] = self._num_asked
        self.sizes: Mapping[str, int] = {**self.sizes, **more}

    def prepare(self, record: Record, rng: np.random.Generator | None = None) -> Row:
        """The row of a record's item; rng draws augmentation, None prepares it for evaluation.

        Raises:
          InputError: naming the expression, the problem and the configuration key to blame.
        """
        clip = clip_record(record)
        if rng is not None and self._num_phrases:
            clip["phrases"] = self._draw_phrases(record, rng)
        row = super().prepare(clip, rng)
        text, tokens = clip["text"], self.tokens(clip["text"], clip["clip_id"])
        row |= {"text_ids": tokens.ids, "text_mask": tokens.mask}
        if rng is not None:
            for i, phrase in enumerate(clip.get("phrases", ())):
                own = self.tokens(phrase["text"], phrase["clip_id"])
                row["phrase_ids"][i], row["phrase_mask"][i] = own.ids, own.mask
                row["phrase_objects"][i], row["phrase_valid"][i] = object_id(phrase), True
            if "asked_ids" in row:
                exists = row["phrase_valid"][: self._num_asked, None]
                for name in ("ids", "mask"):
                    asked = row[f"phrase_{name}"][: self._num_asked]
                    row[f"asked_{name}"][:] = np.where(exists, asked, row[f"text_{name}"])
            return row | {"object_id": object_id(clip)}
        row |= {"has_text": np.bool_(tokens.num_pieces > 0), "is_cut": np.bool_(tokens.is_cut)}
        row |= {"text": text, "place": np.int32(record.get("item", 0))}
        return row | _facts(clip)

    def tokens(self, text: str, name: str) -> Tokens:
        """The tokens of an expression; InputError with its name where it cannot have any."""
        try:
            return tokenize(self.tokenizer, text, self._text.max_tokens)
        except InputError as error:
            raise InputError(f"expression {name}: {error}") from error

    def prepare_labels(self, record: Record) -> Row:
        """Only the ground truth of `prepare` in evaluation; reads no text."""
        clip = clip_record(record)
        return super().prepare_labels(clip) | _facts(clip)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the configuration; InputError if it names none."""
        return make_tokenizer(self._text)

    def _draw_phrases(self, record: Record, rng: np.random.Generator) -> list[dict[str, Any]]:
        """The clips of the item and of others of its record, which are drawn."""
        item = int(record["item"])
        others = [i for i in range(len(record["expressions"])) if i != item]
        drawn = [item, *(int(i) for i in rng.permutation(others)[: self._num_phrases - 1])]
        return [clip_record({**record, "item": i}) for i in drawn]

    def _draw_seconds(self, num_frames, rng):
        if rng is None or not self._num_phrases:
            return ()
        if num_frames <= self._num_seconds:
            return range(num_frames)
        return np.sort(rng.permutation(num_frames)[: self._num_seconds]).tolist()

    def _write_clip_sound(self, row, seconds, mel) -> None:
        for i, t in enumerate(seconds):
            row["clip_log_mel"][i], row["clip_seconds"][i] = mel[t], t
            row["clip_has_sound"][i] = True

    def _write_targets(self, row, i, record, t, augmented) -> None:
        found = {}  # several expressions mean the same object
        for place, phrase in enumerate(record.get("phrases", ())):
            meant = phrase["fid"], phrase["is_null"]
            if meant not in found:
                labels = decode_labels(phrase["masks"][t], self._data.num_classes)
                found[meant] = augmented(labels) == 1
            row["phrase_targets"][i, place] = found[meant]

    def _write_labels(self, row: Row, i: int, labels: np.ndarray, draw: Any) -> None:
        if "labels" not in row:
            return super()._write_labels(row, i, labels, draw)
        side = self.sizes["S"]
        grown = transforms.resize(labels * np.uint8(255), (side, side), transforms.BILINEAR)
        row["labels"][i] = grown > 0


def object_id(clip: Mapping[str, Any]) -> np.int32:
    """Equal for expressions that mean the same object of the same clip; -1 for nothing."""
    if clip["is_null"]:
        return np.int32(-1)
    return np.int32(zlib.crc32(f"{clip['vid']}/{clip['fid']}".encode()) & 0x7FFFFFFF)


def make_tokenizer(text: Any) -> Tokenizer:
    """The tokenizer of config.data.text; InputError if it names none."""
    if text.source == "tiny" and text.words:
        return WordTokenizer(text.words)
    if text.tokenizer:
        return load_tokenizer(text.source, text.tokenizer)
    need = "vocabulary.json" if text.source == "tiny" else "tokenizer.json, or its folder"
    raise InputError(
        f"config.data.text.tokenizer is empty, and config.data.text.source = {text.source!r} "
        f"needs a {need}"
    )


def clip_record(record: Record) -> dict[str, Any]:
    """The clip that a row is made from: the record with the masks of what its item means.

    Besides the fields of data/clip.py: vid, fid, text, kind, is_null and is_seen. A record without
    expressions, as prediction makes it, means an unknown object.
    """
    clip = {name: record[name] for name in ("frames", "waveform", "sample_rate")}
    clip |= {"pre_masks": (), "masks": (), "mask_index": ()}
    if "expressions" not in record:
        return clip | {
            "clip_id": record["clip_id"], "text": record["text"], "vid": "", "fid": 0,
            "is_null": False, "is_seen": False, "kind": 0, "category": "", "category_label": 0,
        }  # fmt: skip
    item, num_frames = int(record["item"]), len(record["frames"])
    uid, fid = record_name(record), int(record["expression_fids"][item])
    is_null = bool(record["is_null"][item])
    places = np.flatnonzero(np.asarray(record["fids"]) == fid)
    if is_null or not len(places):
        if not is_null:
            raise InputError(f"expression {uid}: the record has no masks of object {fid}")
        empty = np.zeros(decode_rgb(record["frames"][0]).shape[:2], np.uint8)
        masks = [empty] * num_frames
    else:
        start = int(places[0]) * num_frames
        masks = list(record["masks"])[start : start + num_frames]
    given = record.get("text", record["expressions"][item])
    return clip | {
        "clip_id": uid,
        "category": uid.rsplit("_", 2)[1],
        "category_label": 0,
        "masks": masks,
        "mask_index": range(num_frames),
        "text": decode_text(given),
        "vid": decode_text(record["vid"]),
        "fid": fid,
        "is_null": is_null,
        "is_seen": bool(record["is_seen"][item]),
        "kind": int(record["kinds"][item]),
    }


def _facts(clip: Mapping[str, Any]) -> Row:
    flags = {name: np.bool_(clip[name]) for name in ("is_null", "is_seen")}
    return flags | {"kind": np.int32(clip["kind"])}
