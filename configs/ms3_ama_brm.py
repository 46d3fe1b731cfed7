"""VCT + AMA + BRM on AVSBench MS3: ms3_ama.py with boundary refinement, otherwise unchanged.

Command: avs-jax train --config=configs/ms3_ama_brm.py --workdir=DIR \
             --config.train.init_from=S4_AMA_BRM_RUN --config.train.batch_size=4
To start from a run without BRM (S4 + AMA), add --config.train.init_fresh="('brm/.*',)".
Hardware: as ms3_ama.py: batch 4 fits on one 80 GB GPU in float32 (the AMA authors' notes); BRM adds
0.2 M parameters. Not timed here.
Target: 73.50 mIoU, 84.88 F_beta on the test split (README of SKA-VCT, the full model, mean of five
seeds; without its boundary head 72.65). Their head is the part "auxiliary"; "refine" is ours. The
notes record 63.72 and 79.37 for an earlier run: configs/ms3_ama.py from S4 + AMA with
--config.model.refiner.name=auxiliary --config.loss.boundary.weight=0.5
--config.optim.learning_rate=1e-4 --config.train.steps=30000, with its best at 5,000 to 10,000.
`:demo` is a small version for generated clips, made as described in ms3_vct.py.
"""

from ml_collections import ConfigDict

from configs import ms3_vct
from configs.s4_ama import add_ama
from configs.s4_ama_brm import add_refinement


def get_config(variant: str = "") -> ConfigDict:
    return ms3_vct.vary(add_refinement(add_ama(ms3_vct.recipe()), weight=0.1), variant)
