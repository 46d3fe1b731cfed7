"""Controls of referring segmentation: the same ground truth, another expression or another sound.

no_text        the expression is empty
another_text   the expression of another row, never the same words
silence        the waveform is zero
swapped_audio  the sound of another clip
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from avs_jax.controls.altered import Altered
from avs_jax.controls.pairing import swap_audio, swap_texts, with_audio_of
from avs_jax.data.decode import decode_text
from avs_jax.task import Controls, Record


def expression_controls(records: Sequence[Record], split: str) -> Controls:
    """The conditions beside the records as they are."""
    del split
    everyone = range(len(records))
    found: dict[str, Sequence[Record]] = {"no_text": Altered(records, everyone, _no_text)}
    notes, texts, clips = [], {}, {}
    for i, record in enumerate(records):
        texts[f"{i:08d}"] = decode_text(record["expressions"][record["item"]])
        clips[f"{i:08d}"] = decode_text(record["vid"])
    speakers = _pairs({name: text.lower() for name, text in texts.items()}, swap_texts)
    if speakers is None:
        notes.append("another_text left out: all expressions are the same")
    else:
        found["another_text"] = Altered(
            records, everyone, lambda _, i: {"text": texts[f"{speakers[i]:08d}"]}
        )
    found["silence"] = Altered(records, everyone, _silence)
    sounds = _pairs(clips, swap_audio)
    if sounds is None:
        notes.append("swapped_audio left out: all expressions are about one clip")
    else:
        found["swapped_audio"] = with_audio_of(records, list(enumerate(sounds)))
    return Controls(found, notes)


def _pairs(
    groups: Mapping[str, str], swap: Callable[[Mapping[str, str]], dict[str, str]]
) -> list[int] | None:
    """For each record one of another group; None if there is one group."""
    try:
        pairs = swap(groups)
    except ValueError:
        return None
    return [int(pairs[name]) for name in sorted(groups)]


def _no_text(record: Record, _: int) -> dict[str, Any]:
    del record
    return {"text": ""}


def _silence(record: Record, _: int) -> dict[str, Any]:
    return {"waveform": np.zeros_like(record["waveform"])}
