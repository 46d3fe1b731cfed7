"""Task `track`: SAM2's keys, once, with their meaning, and its four sizes.

Images are resized to a square, pixels are normalized; points, boxes and masks are scaled along.
"""

from ml_collections import ConfigDict

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

    # ---- model: keys are the fields of avs_jax.models.sam2.model.SAM2 ----
    model = config.model = ConfigDict()
    model.backbone = ConfigDict({"name": "hiera", **BACKBONES[size]})
    model.width = 256  # channels of the maps that are decoded
    model.memory_dim = 64
    model.num_memory_layers = 4
    model.ffn_dim = 2048  # of the memory attention
    model.num_maps = 7  # in memory: prompted frames (as one) and the frames before
    model.num_pointers = 16  # likewise
    model.map_stride = 1  # frames between remembered maps, the frame before aside
    model.max_prompted = 0  # prompted frames that are attended to, the closest; 0: all
    model.codes_occlusion = True  # 2.1: an embedding for memories without the object
    model.codes_pointer_times = True  # 2.1: pointers know their distance in time
    model.stability_threshold = 0.98  # of mask 0, else the best of three; 0: always mask 0
    model.hard_prompts = True  # prompted frames are remembered by their outline
    model.prompt_slots = 4  # predict --arrays: the most frames with prompts
    model.memory_dtype = "bfloat16"  # of the maps in memory
    model.dtype = "float32"
    return config


BACKBONES = {
    "tiny": {"embed_dim": 96, "depths": (1, 2, 7, 2), "global_blocks": (5, 7, 9)},
    "small": {"embed_dim": 96, "depths": (1, 2, 11, 2), "global_blocks": (7, 10, 13)},
    "base_plus": {"embed_dim": 112, "depths": (2, 3, 16, 3), "global_blocks": (12, 16, 20)},
    "large": {"embed_dim": 144, "depths": (2, 6, 36, 4), "global_blocks": (23, 33, 43)},
}
for _size, _backbone in BACKBONES.items():
    _backbone["num_heads"] = 1 if _size in ("tiny", "small") else 2
    _backbone["windows"] = (8, 4, 16, 8) if _size == "large" else (8, 4, 14, 7)
    _backbone["pos_grid"] = 14 if _size == "base_plus" else 7


def vary(config: ConfigDict, variant: str) -> ConfigDict:
    """The recipe, `:v2.0` for the weights of July 2024, or `:tiny` for tests and checks."""
    check_variant(variant, *VARIANTS)
    if variant == "v2.0":
        config.name += "_v2.0"
        config.model.update(codes_occlusion=False, codes_pointer_times=False)
    if variant == "tiny":
        config.name += "_tiny"
        config.data.image_size = 64
        config.model.backbone.update(embed_dim=8, depths=(1, 1, 1, 1), num_heads=1)
        config.model.backbone.update(windows=(4, 2, 2, 2), global_blocks=(2,))
        config.model.update(width=32, memory_dim=16, num_memory_layers=1, ffn_dim=16)
    return config
