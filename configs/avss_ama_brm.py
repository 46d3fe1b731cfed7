"""VCT + AMA + BRM on AVSBench-semantic (AVSS): avss_ama.py with boundary refinement.

Command: avs-jax train --config=configs/avss_ama_brm.py --workdir=DIR
Hardware: as avss_vct.py. The AMA authors ran AVSS + AMA + BRM with --config.train.batch_size=4
--config.optim.learning_rate=1.4e-4 --config.train.steps=90000 in mixed precision, where ten frames
per clip did not always fit in 80 GB; BRM adds 0.2 M parameters. Not timed here.
Target: 51.98 mIoU, 56.33 F_beta on the test split (README of SKA-VCT, the full model, mean of five
seeds; without its boundary head 51.76). Their head is the part "auxiliary"; "refine" is ours.
Edges are those of the union of all classes except background.
`:demo` is a small version for generated clips, made as described in avss_vct.py.
"""

from ml_collections import ConfigDict

from configs import avss_vct
from configs.s4_ama import add_ama
from configs.s4_ama_brm import add_refinement
from configs.segment import shrink


def get_config(variant: str = "") -> ConfigDict:
    config = add_refinement(add_ama(avss_vct.recipe()), weight=0.2)
    return shrink(config, variant, avss_vct.DEMO)
