"""SAM2 with an expression, on Ref-AVS: words and sounds are its prompt, and words enter its maps.

Weights: as s4_sam2.py, and distilroberta-base as refer_vct.py.
Command: avs-jax train --config=configs/refer_sam2.py --workdir=DIR
  --config.data.text.tokenizer=FOLDER --config.init.text=DIR
  --config.init.sam2=checkpoints/sam2_base_plus --config.init.audio_backbone=checkpoints/vggish
Published, J&f_beta: SAM2-LOVE 47.7 on seen, 69.4 on unseen, null S 0.23 (arXiv 2506.01558); Omni-R1
about 47 / 74; ALS3P, with SAM ViT-H and a language model of 7B, 80.0 / 81.7. Sa2VA-1B puts a vector
of its language model in the same place; its numbers, in sam2_sa2va.py, are for silent videos.
gamma of CMA starts at 0: at the first step, words act through the prompt alone. We have not trained
on Ref-AVS. `:demo` is a small version for generated clips (avs-jax clips --setting=refer).
"""

from ml_collections import ConfigDict

from configs import parts, sam2_host
from configs.base import check_variant
from configs.refer import keep_colors_and_sides, refer_config


def recipe() -> ConfigDict:
    config, base = refer_config(), sam2_host.sam2_host_config("refer_sam2")
    text = config.model.text
    config.name, config.host = base.name, base.host
    for key in ("image_size", "square_first", "augment", "trunk_features", "trunk_key"):
        config.data[key] = base.data[key]
    keep_colors_and_sides(config)
    config.model = sam2_host.host_model(config.data, "base_plus")
    config.model.text = text
    config.model.text_prompt = True
    config.model.fusion = parts.cma()
    config.model.fusion.levels = ("res4", "res3", "res2")
    config.loss, config.optim = base.loss, base.optim
    config.optim.frozen = (r"text/.*", *base.optim.frozen)
    config.init = base.init
    config.init.text = ""  # folder of --source=roberta
    for key in ("num_phrases", "num_asked", "num_seconds"):  # no localizer
        del config.data.text[key]
    config.train.batch_size = 4
    config.evaluate.batch_size = 8
    config.train.init_fresh, config.train.init_dropped = (), ()
    return config


def get_config(variant: str = "") -> ConfigDict:
    config = recipe()
    check_variant(variant, "demo", "tiny")
    if not variant:
        return config
    config.data.text.source = "tiny"
    config.data.text.max_tokens = 16
    config.model.text = parts.tiny_text()
    config.model.text.vocab_size = 256
    sam2_host.shrink_for_demo(config)
    keep_colors_and_sides(config)
    config.data.num_supervised = 2
    config.model.fusion.num_heads = 4
    config.evaluate.score_size = 96
    config.train.steps = 6000
    if variant == "tiny":
        sam2_host.shrink_to_tiny(config)
        config.model.text.update(hidden_dim=16, num_layers=1, num_heads=2, ffn_dim=16)
        config.model.fusion.num_heads = 2
        config.data.num_supervised = 1
    return config
