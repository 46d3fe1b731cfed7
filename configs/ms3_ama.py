"""VCT + AMA on AVSBench MS3: ms3_vct.py with motion, otherwise unchanged.

Command: avs-jax train --config=configs/ms3_ama.py --workdir=DIR \
             --config.train.init_from=S4_AMA_RUN --config.train.batch_size=4
Hardware: batch 4 fits on one 80 GB GPU in float32 (the AMA authors' notes); not timed here.
Target: 65.02 mIoU, 78.02 F_beta on the test split, 67.08 and 83.54 on val (the AMA authors' notes:
from S4 + AMA, batch 4, learning rate 1.4e-4, 40,000 steps; best at 16,500, so it overfits).

Variants, according to the AMA authors' notes:
  (none)        40,000 steps, the run above
  :v2           12,000 steps at a learning rate of 7e-5, evaluated every 500 steps; the notes record
                no result and no batch size: 4 is that of the run above
  :regularized  v2 with the notes' proposals against overfitting (`regularize` of ms3_vct.py):
                dropout in AMA, its own learning rate and decay, an average of the parameters, early
                stopping; not trained on AVSBench yet
  :demo, :regularized_demo  small versions for generated clips, made as described in ms3_vct.py
"""

from ml_collections import ConfigDict

from configs import ms3_vct
from configs.s4_ama import add_ama


def get_config(variant: str = "") -> ConfigDict:
    return ms3_vct.vary(add_ama(ms3_vct.recipe()), variant)
