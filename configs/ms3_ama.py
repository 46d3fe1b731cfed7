"""VCT + AMA on AVSBench MS3: ms3_vct.py with motion, and nothing else.

Command: python -m avs_jax.main --config=configs/ms3_ama.py --workdir=DIR \
             --config.train.init_from=S4_AMA_RUN --config.train.batch_size=4
Hardware: batch 4 fits one GPU of 80 GB in float32 (the AMA authors' notes); not timed here.
Aims at: 65.02 mIoU, 78.02 F_beta on the test split, 67.08 and 83.54 on val (the AMA authors' notes:
from S4 + AMA, batch 4, learning rate 1.4e-4, 40,000 steps; the best came at 16,500: it over-fits).

Variants, by what the notes of the AMA authors record:
  (nothing)     40,000 steps, the run above
  :v2           12,000 steps at a learning rate of 7e-5, evaluated every 500; no result is recorded,
                nor a batch size: 4 is that of the run above
  :regularized  v2 with what the notes propose against over-fitting (`regularize` of ms3_vct.py):
                dropout in AMA, its own learning rate and decay, an average of the parameters, early
                stopping; not trained on AVSBench yet
  :demo, :regularized_demo  the same recipes, small, on generated clips, made as ms3_vct.py says
"""

from ml_collections import ConfigDict

from configs import ms3_vct
from configs.s4_ama import add_ama


def get_config(variant: str = "") -> ConfigDict:
    return ms3_vct.vary(add_ama(ms3_vct.recipe()), variant)
