"""VCT on AVSBench S4 with PVT-v2-b5, the other backbone of AVSBench's papers, in place of Swin-B.

Weights: python scripts/convert_weights.py --source=pvt_v2 --input=pvt_v2_b5.pth \
             --config=configs/s4_vct_pvt_v2.py --output=checkpoints/pvt_v2_b5
Command: python -m avs_jax.main --config=configs/s4_vct_pvt_v2.py --workdir=DIR \
             --config.init.backbone=checkpoints/pvt_v2_b5
Hardware: 211 M parameters, 163 M of them in the two backbones (Swin-B's: 174 M). Not timed here.
Aims at: no number; VCT's published checkpoints are Swin-B's, and this was not trained here.
`:demo` is the same recipe, small, on generated clips (scripts/demo.sh).
"""

from ml_collections import ConfigDict

from configs.s4_vct import get_config as get_vct_config


def get_config(variant: str = "") -> ConfigDict:
    config = get_vct_config(variant)
    config.name = config.name.replace("vct", "vct_pvt_v2")
    backbone = config.model.backbone = ConfigDict()
    backbone.name = "pvt_v2"
    backbone.embed_dims = (64, 128, 320, 512)
    backbone.depths = (3, 6, 40, 3)
    backbone.num_heads = (1, 2, 5, 8)
    backbone.mlp_ratios = (4, 4, 4, 4)
    backbone.sr_ratios = (8, 4, 2, 1)
    backbone.drop_path_rate = 0.1  # AVSBench's
    if variant == "demo":
        backbone.embed_dims = (32, 64, 128, 256)
        backbone.depths = (1, 1, 1, 1)
        backbone.num_heads = (1, 2, 4, 8)
        backbone.drop_path_rate = 0.0
    return config
