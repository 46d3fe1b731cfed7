"""SAM2.1 small: segments what points, boxes or masks mark, in images and videos.

Weights: avs-jax convert --source=sam2 --input=sam2.1_hiera_small.pt \
             --config=configs/sam2_small.py --output=checkpoints/sam2_small
Command: avs-jax predict --checkpoint=checkpoints/sam2_small --video=x.mp4 \
             --points=points.json --output=DIR
46 M parameters; SA-V test J&F 76.6 (2.0: 74.9), by the authors.
`:v2.0` takes the weights of version 2.0 (sam2_hiera_small.pt); `:tiny` is for tests.
"""

from ml_collections import ConfigDict

from configs import sam2


def get_config(variant: str = "") -> ConfigDict:
    return sam2.vary(sam2.sam2_config("small"), variant)
