"""SAM2.1 large: segments what points, boxes or masks mark, in images and videos.

Weights: avs-jax convert --source=sam2 --input=sam2.1_hiera_large.pt \
             --config=configs/sam2_large.py --output=checkpoints/sam2_large
Command: avs-jax predict --checkpoint=checkpoints/sam2_large --video=x.mp4 \
             --points=points.json --output=DIR
224.4 M parameters; SA-V test J&F 79.5 (2.0: 76.0), by the authors.
`:v2.0` takes the weights of version 2.0 (sam2_hiera_large.pt); `:tiny` is for tests.
"""

from ml_collections import ConfigDict

from configs import sam2


def get_config(variant: str = "") -> ConfigDict:
    return sam2.vary(sam2.sam2_config("large"), variant)
