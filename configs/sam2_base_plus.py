"""SAM2.1 base+: segments what points, boxes or masks mark, in images and videos.

Weights: avs-jax convert --source=sam2 --input=sam2.1_hiera_base_plus.pt \
             --config=configs/sam2_base_plus.py --output=checkpoints/sam2_base_plus
Command: avs-jax predict --checkpoint=checkpoints/sam2_base_plus --video=x.mp4 \
             --points=points.json --output=DIR
80.8 M parameters; SA-V test J&F 78.2 (2.0: 74.7), by the authors.
`:v2.0` takes the weights of version 2.0 (sam2_hiera_base_plus.pt); `:tiny` is for tests.
"""

from ml_collections import ConfigDict

from configs import sam2


def get_config(variant: str = "") -> ConfigDict:
    return sam2.vary(sam2.sam2_config("base_plus"), variant)
