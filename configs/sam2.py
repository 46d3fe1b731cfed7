"""Task `track`: its keys, with their meaning; those of the model are in configs/parts.py.

Images are resized to a square, pixels are normalized; points, boxes and masks are scaled along.
"""

from ml_collections import ConfigDict

from configs import parts
from configs.base import base_config, check_variant

VARIANTS = ("v2.0", "tiny")


def sam2_config(size: str) -> ConfigDict:
    """SAM2.1 of one size."""
    config = base_config()
    config.name = f"sam2_{size}"
    config.task = "track"

    # ---- data: how frames become inputs ----
    data = config.data
    data.image_size = 1024  # px, a multiple of 32
    data.image_resize = "bilinear"  # of images: the original's, antialiased, on floats
    data.frame_resize = "bicubic"  # of a video's frames: the original's, on 8 bits
    data.max_hole_area = 8  # cells of the mask at stride 4; smaller holes are filled. 0: none

    config.model = parts.sam2(size)
    return config


def vary(config: ConfigDict, variant: str) -> ConfigDict:
    """The recipe, `:v2.0` for the weights of July 2024, or `:tiny` for tests and checks."""
    check_variant(variant, *VARIANTS)
    if variant == "v2.0":
        config.name += "_v2.0"
        config.model.update(codes_occlusion=False, codes_pointer_times=False)
    if variant == "tiny":
        config.name += "_tiny"
        config.data.image_size = 64
        config.model.backbone.update(parts.tiny_hiera())
        config.model.update(width=32, memory_dim=16, num_memory_layers=1, ffn_dim=16)
    return config
