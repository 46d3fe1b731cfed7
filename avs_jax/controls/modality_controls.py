"""Controls of classification: each clip without its sound, and without its frames."""

from collections.abc import Sequence

from avs_jax.controls.altered import Altered
from avs_jax.task import Controls, Record

CONDITIONS = {"without_sound": (True, False), "without_frames": (False, True)}


def modality_controls(is_on: bool, records: Sequence[Record], split: str) -> Controls:
    """CONDITIONS, where they are asked for."""
    del split
    if not is_on:
        return Controls()
    places = range(len(records))
    return Controls(
        {
            name: Altered(
                records, places, lambda record, item, present=present: {"present": present}
            )
            for name, present in CONDITIONS.items()
        }
    )
