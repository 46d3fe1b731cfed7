"""VCT + AMA with synchrony on AVSBench S4: s4_ama.py and s4_sync.py together.

Command: avs-jax train --config=configs/s4_ama_sync.py --workdir=DIR
Records and target are those of s4_sync.py; the fusion is a list of two rows, "ama+sync".
`:demo` is a small version for generated clips.
"""

from ml_collections import ConfigDict

from configs import s4_vct
from configs.s4_ama import add_ama
from configs.s4_sync import add_sync
from configs.segment import shrink


def get_config(variant: str = "") -> ConfigDict:
    return shrink(add_sync(add_ama(s4_vct.recipe())), variant)
