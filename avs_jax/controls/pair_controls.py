"""The control of alignment: each clip with the sound of a clip drawn at random.

A random permutation may give a clip its own sound, so a model that finds every pair finds one of N
on average: chance.
"""

from collections.abc import Sequence

import numpy as np

from avs_jax.controls.pairing import with_audio_of
from avs_jax.task import Controls, Record

SEED = 0
SHUFFLED = "shuffled_pairs"


def pair_controls(is_on: bool, records: Sequence[Record], split: str) -> Controls:
    """The condition SHUFFLED, where it is asked for."""
    del split
    if not is_on:
        return Controls()
    givers = np.random.default_rng(SEED).permutation(len(records))
    pairs = [(i, int(giver)) for i, giver in enumerate(givers)]
    return Controls({SHUFFLED: with_audio_of(records, pairs)})
