"""refer_vct with cross-modal attention: words enter the feature maps, before the queries are made.

Command: avs-jax train --config=configs/refer_cma.py --workdir=DIR
  --config.data.text.tokenizer=FOLDER --config.init.text=DIR --config.train.init_from=DIR
Published: see refer_vct.py; no published model puts CMA into VCT. SALMA's ablation on Ref-DAVIS17,
single runs without seeds: J&F 68.5 without CMA, 69.2 with it, 70.8 with the mask gate.
gamma starts at 0, so at first CMA itself changes no mask. The masks of the checkpoint it starts
from are not those of the first step, though: text tokens join the decoder's prompt, and parts that
this model does not have are left out (config.train.init_dropped: pre-masks, fusions, BRM).
An AVSS run as a start takes the flag in refer_vct.py.
`:demo` is a small version for generated clips (avs-jax clips --setting=refer).
"""

from ml_collections import ConfigDict

from configs import parts, refer_vct
from configs.refer import shrink


def recipe() -> ConfigDict:
    config = refer_vct.recipe()
    config.name = "refer_cma"
    config.model.fusion = parts.cma()
    config.model.fusion.mask_gate = "located"
    config.model.localizer = parts.text_to_pixel()
    config.data.text.num_phrases = 6
    return config


def get_config(variant: str = "") -> ConfigDict:
    return shrink(recipe(), variant)
