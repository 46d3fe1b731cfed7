"""VCT on AVSBench S4 with the sound in its queries: s4_vct.py with a fusion of task classify.

Command: avs-jax train --config=configs/s4_query_fusion.py --workdir=DIR
    [--config.model.fusion.kind=cross]
Target: ours; s4_vct.py's numbers are what it has to beat. Not trained yet.
`:demo` is a small version for generated clips.
"""

from ml_collections import ConfigDict

from configs import parts, s4_vct
from configs.segment import keep_norms, shrink


def add_query_fusion(config: ConfigDict) -> ConfigDict:
    """A VCT recipe whose queries know the sound."""
    config.name = config.name.replace("vct", "query_fusion")
    config.model.fusion = parts.query_fusion()
    keep_norms(config)
    return config


def get_config(variant: str = "") -> ConfigDict:
    return shrink(add_query_fusion(s4_vct.recipe()), variant)
