"""False sounds in training, which teach a model to mark nothing where nothing in the frame sounds.

A share of the clips of every epoch gets silence, noise, or the sound of something that is not in
the frame. Its ground truth becomes empty: background in every annotated frame. Which clips, and
which sounds, depends on (seed, epoch, record) alone.

Waveforms, levels and pairing rules are those of false_sounds.py: noise and off-screen sound have
the RMS of the clip's own sound, and an off-screen sound comes from another semantic group and from
no category in the frame. Where an evaluation freezes one partner per clip, training draws from all
that fit. Partners are training clips.

Source: AVSBench-Robust (arXiv 2502.00358), which trains with negative audio. Departures: levels,
pairing and shares as described here.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from avs_jax.controls.false_sounds import (
    OffscreenPartners,
    collect_facts,
    conditions,
    false_sound,
)
from avs_jax.data.decode import decode_labels
from avs_jax.data.records import metadata
from avs_jax.spec import IGNORE_LABEL, NEGATIVE_AUDIO, SAMPLE_RATE, InputError
from avs_jax.task import Record

MAX_SEED = 1 << 48


def check_config(config: Any) -> list[str]:
    """Checks config.data.false_sounds.

    Returns:
      its types; [] where no clip gets a false sound.

    Raises:
      InputError: naming the key, its value and the choices.
    """
    section = config.data.get("false_sounds")  # configurations of older runs have none
    if section is None:
        return []
    share, types = section.share, section.types
    if not (isinstance(share, int | float) and 0 <= share <= 1):
        raise InputError(f"config.data.false_sounds.share = {share!r}: expected a share, 0..1")
    asked = [word.strip() for word in types.split(",") if word.strip()]
    conditions(types)
    if {"shift", "late"} & set(asked) or not asked:
        raise InputError(
            f"config.data.false_sounds.types = {types!r}: expected any of silence, noise and "
            "offscreen, joined by commas (a shifted sound is the clip's own, so its ground truth "
            "is not empty)"
        )
    return asked if share else []


def false_training_sounds(
    config: Any, records: Sequence[Record]
) -> Callable[[Sequence[Record], int, np.random.Generator], Record] | None:
    """What config.data.false_sounds makes of the training records; None if nothing.

    With off-screen sounds, this reads every record once.

    Raises:
      InputError: as `check_config`; no clip has an off-screen partner.
    """
    types = check_config(config)
    if not types:
        return None
    partners = None
    if "offscreen" in types:
        names = metadata(records).get("classes", ())
        partners = OffscreenPartners(collect_facts(records, config.data.num_classes, names))
        if not any(partners.fits(i) for i in range(len(records))):
            raise InputError(
                f"config.data.false_sounds.types = {config.data.false_sounds.types!r}: no training "
                "clip has an off-screen sound, because all are of one semantic group or the "
                "records do not say what sounds in them"
            )
    return FalseTrainingSounds(
        config.data.false_sounds.share, tuple(types), config.data.num_classes, partners
    )


@dataclasses.dataclass(frozen=True)
class FalseTrainingSounds:
    """Gives a share of the clips a false sound and an empty ground truth. Picklable.

    Attributes:
      share: of the clips.
      types: of sounds, each as likely as the others; a clip without an off-screen partner gets one
        of the other types or, if there is none, keeps its sound.
      num_classes: of the masks.
      partners: of the records, if types include "offscreen".
    """

    share: float
    types: tuple[str, ...]
    num_classes: int
    partners: OffscreenPartners | None = None

    def __call__(
        self, records: Sequence[Record], place: int, rng: np.random.Generator
    ) -> Mapping[str, Any]:
        """The record at `place`, as it is or altered."""
        record, is_false = records[place], rng.random() < self.share
        fits = self.partners.fits(place) if is_false and self.partners else []
        types = [name for name in self.types if name != "offscreen" or fits]
        if not is_false or not types:
            return record
        variants = NEGATIVE_AUDIO[types[rng.integers(len(types))]]
        condition = variants[rng.integers(len(variants))]
        partner = records[fits[rng.integers(len(fits))]] if condition == "offscreen" else None
        entry = {"noise_seed": int(rng.integers(MAX_SEED))}
        return {
            **record,
            "waveform": false_sound(condition, record, entry, partner),
            "sample_rate": SAMPLE_RATE,
            "masks": [self._empty(mask) for mask in record["masks"]],
            "sound_is_false": True,
        }

    def _empty(self, mask: Any) -> np.ndarray:
        """A mask without objects; unknown pixels stay unknown."""
        labels = decode_labels(mask, self.num_classes)
        return np.where(labels == IGNORE_LABEL, labels, np.uint8(0))
