"""SAM2.1 tiny: segments what points, boxes or masks mark, in images and videos.

Weights: avs-jax convert --source=sam2 --input=sam2.1_hiera_tiny.pt \
             --config=configs/sam2_tiny.py --output=checkpoints/sam2_tiny
Command: avs-jax predict --checkpoint=checkpoints/sam2_tiny --video=x.mp4 \
             --points=points.json --output=DIR
38.9 M parameters; SA-V test J&F 76.5 (2.0: 75.0), by the authors.
`:v2.0` takes the weights of version 2.0 (sam2_hiera_tiny.pt); `:tiny` is for tests.
"""

from ml_collections import ConfigDict

from configs import sam2


def get_config(variant: str = "") -> ConfigDict:
    return sam2.vary(sam2.sam2_config("tiny"), variant)
