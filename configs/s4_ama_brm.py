"""VCT + AMA + BRM on AVSBench S4: s4_ama.py with boundary refinement, otherwise unchanged.

Command: avs-jax train --config=configs/s4_ama_brm.py --workdir=DIR
The AMA authors' flags: --config.train.batch_size=8 (which sets the learning rate to 2e-4)
             --config.model.dtype=bfloat16 --config.model.remat=backbone
Hardware: as s4_ama.py (on one 80 GB GPU, batch 4 fits in float32, batch 8 with the flags above: the
AMA authors' notes). BRM adds 0.2 M parameters. Not timed here.
Target: 87.42 mIoU, 95.10 F_beta on the test split (README of SKA-VCT, the full model, mean of five
seeds; without its boundary head 87.18). Their head is the part "auxiliary"; "refine" is ours.
The authors' own head on AMA: configs/s4_ama.py with --config.model.refiner.name=auxiliary (weight
0.2 as in their second recipe; --config.loss.boundary.weight=0.5 is their first).
To start from a run without BRM, with its masks: --config.train.init_from=S4_AMA_RUN
--config.train.init_fresh="('brm/.*',)".
`:demo` is a small version for generated clips (scripts/demo.sh).
"""

from ml_collections import ConfigDict

from configs import parts, s4_vct
from configs.s4_ama import add_ama
from configs.segment import shrink


def add_refinement(config: ConfigDict, weight: float) -> ConfigDict:
    """An AMA recipe with boundary refinement; `weight` is the maximum weight of its loss."""
    config.name = config.name.replace("ama", "ama_brm")
    config.model.refiner = parts.refiner("refine")
    config.model.refiner.ramp = (0.3, 0.6)
    config.loss.boundary.kind = "balanced"
    config.loss.boundary.weight = weight
    config.loss.boundary.max_share = 0.1
    return config


def get_config(variant: str = "") -> ConfigDict:
    return shrink(add_refinement(add_ama(s4_vct.recipe()), weight=0.2), variant)
