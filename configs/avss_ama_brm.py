"""VCT + AMA + BRM on AVSBench-semantic (AVSS): avss_ama.py with boundary refinement, nothing else.

Command: python -m avs_jax.main --config=configs/avss_ama_brm.py --workdir=DIR
Hardware: as avss_vct.py. The AMA authors ran AVSS + AMA + BRM with --config.train.batch_size=4
--config.optim.learning_rate=1.4e-4 --config.train.steps=90000 in mixed precision, for which ten
frames per clip did not always fit 80 GB; BRM adds 0.2 M parameters. Not timed here.
Aims at: 51.98 mIoU, 56.33 F_beta on the test split (README of SKA-VCT, the full model, mean of five
seeds; without its boundary head 51.76). Their head is the part "auxiliary"; "refine" is ours.
Edges are those of the union of all classes but background.
`:demo` is the same recipe, small, on generated clips, made as avss_vct.py says.
"""

from ml_collections import ConfigDict

from configs import avss_vct
from configs.s4_ama import add_ama
from configs.s4_ama_brm import add_refinement
from configs.segment import shrink


def get_config(variant: str = "") -> ConfigDict:
    config = add_refinement(add_ama(avss_vct.recipe()), weight=0.2)
    return shrink(config, variant, avss_vct.DEMO)
