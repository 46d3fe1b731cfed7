"""VCT with synchrony on AVSBench S4: s4_vct.py with motion at the video's own rate.

Command: avs-jax train --config=configs/s4_sync.py --workdir=DIR
It needs records with motion tracks:
  avs-jax flow --dataset=s4 --root=Single-source --output=tracks --source=track
      --model=lucas_kanade
  avs-jax data build --dataset=avsbench_s4 --manual_dir=Single-source
      --track_dir=tracks --data_dir=DIR
Target: ours: on look-alikes that both move (avs-jax clips --setting=twins --kind=moving), the one
that sounds (94 % of them, VCT 50 %: docs/motion.md); elsewhere s4_vct.py's numbers. Not trained on
AVSBench yet.
`:demo` is a small version for generated clips.
"""

from ml_collections import ConfigDict

from configs import parts, s4_vct
from configs.segment import shrink


def add_sync(config: ConfigDict) -> ConfigDict:
    """A recipe with synchrony, beside its fusion if it has one."""
    config.name = config.name.replace("vct", "sync").replace("ama", "ama_sync")
    config.data.track.source = "stored"
    fusion = config.model.fusion
    is_alone = fusion.name == "none"
    config.model.fusion = parts.sync() if is_alone else parts.join_fusions(fusion, parts.sync())
    return config


def get_config(variant: str = "") -> ConfigDict:
    return shrink(add_sync(s4_vct.recipe()), variant)
