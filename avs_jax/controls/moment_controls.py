"""Controls of grounding in time: the same windows, with another query or another sound.

another_query   the words of another query
silence         features of the sound are zero, its energy is that of silence
another_sound   the sound of another video, repeated or cut to the length of its own
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from avs_jax.controls.altered import Altered
from avs_jax.controls.pairing import swap_audio, swap_texts
from avs_jax.data.decode import decode_text
from avs_jax.data.moments import SILENCE, decode_array
from avs_jax.task import Controls, Record


def moment_controls(has_audio: bool, records: Sequence[Record], split: str) -> Controls:
    """The conditions beside the records as they are.

    Args:
      has_audio: rows have the sound; without it the last two conditions are left out.
    """
    del split
    found: dict[str, Sequence[Record]] = {}
    notes: list[str] = []
    swaps = [("another_query", "query", swap_texts, _words)]
    if has_audio:
        swaps.append(("another_sound", "vid", swap_audio, _sound))
    for name, key, swap, replace in swaps:
        groups = {str(i): decode_text(record[key]) for i, record in enumerate(records)}
        try:
            pairs = {int(a): int(b) for a, b in swap(groups).items()}
        except ValueError:
            notes.append(f"{name} left out: all records have the same {key}")
            continue
        found[name] = _from_givers(records, pairs, replace)
    if has_audio:
        found["silence"] = Altered(records, range(len(records)), _silence)
    else:
        notes.append("silence, another_sound left out: the model reads no sound")
    return Controls(found, notes)


def _from_givers(
    records: Sequence[Record],
    pairs: Mapping[int, int],
    replace: Callable[[Record, Record], dict[str, Any]],
) -> Altered:
    """Records with what `replace` takes from the records that `pairs` gives them."""
    return Altered(
        records, range(len(records)), lambda record, item: replace(record, records[pairs[item]])
    )


def _words(_: Record, giver: Record) -> dict[str, Any]:
    return {"text": giver["text"]}


def _sound(record: Record, giver: Record) -> dict[str, Any]:
    # rows are cut to the shortest of their features: a short sound would hide the video's end
    own, other = (decode_array(r["audio"]) for r in (record, giver))
    energy = np.asarray(giver["energy"], np.float32)
    return {
        "audio": np.resize(other, (len(own), *other.shape[1:])),
        "energy": np.resize(energy, np.shape(record["energy"])),
    }


def _silence(record: Record, _: int) -> dict[str, Any]:
    audio = decode_array(record["audio"])
    energy = np.full(np.shape(record["energy"]), np.log(SILENCE), np.float32)
    return {"audio": np.zeros_like(audio), "energy": energy}
