"""VCT with an expression, on Ref-AVS: text tokens beside the audio tokens of the decoder.

Command: avs-jax train --config=configs/refer_vct.py --workdir=DIR
  --config.data.text.tokenizer=FOLDER --config.init.text=DIR --config.train.init_from=DIR
FOLDER has distilroberta-base's tokenizer.json, the first DIR its converted weights, the second a
checkpoint of task segment (S4 or MS3 at 384 px, with or without AMA). An AVSS run has 71 classes,
so with one, the classes of the queries start anew:
  --config.train.init_fresh="('(text|cma|head|localizer)/.*', 'predictor/(text|location|class)_.*')"
Published, J / f_beta(batch=4): AVSegFormer with text 34.76 / 0.486 on seen and unseen together, S
0.171; EEMC, the model of this size to compare with, seen 34.20 / 0.513, unseen 49.54 / 0.648, null
S 0.007 (Wang et al., ECCV 2024, table 2). We have not trained on Ref-AVS.
`:demo` is a small version for generated clips (avs-jax clips --setting=refer).
"""

from ml_collections import ConfigDict

from configs.refer import refer_config, shrink


def recipe() -> ConfigDict:
    return refer_config()


def get_config(variant: str = "") -> ConfigDict:
    return shrink(recipe(), variant)
