"""Controls of grounding in time: the same windows, with another query or another sound.

another_query   the words of another query
silence         features of the sound are zero, its energy is that of silence
another_sound   the sound of another video
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from avs_jax.controls.altered import Altered
from avs_jax.controls.pairing import swap_audio, swap_texts
from avs_jax.data.decode import decode_text
from avs_jax.data.moments import SILENCE, decode_array
from avs_jax.task import Controls, Record

WORDS, SOUND = ("text",), ("audio", "energy")


def moment_controls(has_audio: bool, records: Sequence[Record], split: str) -> Controls:
    """The conditions beside the records as they are.

    Args:
      has_audio: rows have the sound; without it the last two conditions are left out.
    """
    del split
    found: dict[str, Sequence[Record]] = {}
    notes: list[str] = []
    for name, key, fields, swap in (
        ("another_query", "query", WORDS, swap_texts),
        ("another_sound", "vid", SOUND if has_audio else (), swap_audio),
    ):
        if not fields:
            continue
        groups = {str(i): decode_text(record[key]) for i, record in enumerate(records)}
        try:
            pairs = {int(a): int(b) for a, b in swap(groups).items()}
        except ValueError:
            notes.append(f"{name} left out: all records have the same {key}")
            continue
        found[name] = _with_fields_of(records, pairs, fields)
    if has_audio:
        found["silence"] = Altered(records, range(len(records)), _silence)
    else:
        notes.append("silence, another_sound left out: the model reads no sound")
    return Controls(found, notes)


def _with_fields_of(
    records: Sequence[Record], pairs: Mapping[int, int], fields: Sequence[str]
) -> Altered:
    def replace(_: Record, item: int) -> dict[str, Any]:
        giver = records[pairs[item]]
        return {name: giver[name] for name in fields if name in giver}

    return Altered(records, range(len(records)), replace)


def _silence(record: Record, _: int) -> dict[str, Any]:
    audio = decode_array(record["audio"])
    energy = np.full(np.shape(record["energy"]), np.log(SILENCE), np.float32)
    return {"audio": np.zeros_like(audio), "energy": energy}
