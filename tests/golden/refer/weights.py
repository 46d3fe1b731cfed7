"""Weights of the goldens of task refer and of SAM2, from a tensor's name and shape alone.

Learned embeddings and tokens of SAM2 are unit normal, residual scales (leaf "gamma...") 1 + 0.1 n,
everything else as tests/golden/weights.py. Names and shapes are those of the PyTorch modules.
"""

import re
import zlib

import numpy as np

from tests.golden.weights import avs_value

_UNIT = re.compile(
    r"(^|\.)(pos_embed|pos_embed_window|positional_encoding_gaussian_matrix|maskmem_tpos_enc"
    r"|no_mem_embed|no_mem_pos_enc|no_obj_ptr|no_obj_embed_spatial|point_embeddings\.\d+\.weight"
    r"|not_a_point_embed\.weight|no_mask_embed\.weight|iou_token\.weight|mask_tokens\.weight"
    r"|obj_score_token\.weight)$"
)
_KEEP = re.compile(r"(^|\.)(_gamma_scale|kx|ky|position_ids|token_type_ids)$")


def refer_value(name: str, shape: tuple[int, ...], integer: bool = False) -> np.ndarray | None:
    """The value of a parameter; None where the architecture computes it."""
    if integer or _KEEP.search(name):
        return None
    is_scale = name.rsplit(".", 1)[-1].startswith("gamma")
    if not is_scale and not _UNIT.search(name):
        return avs_value(name, shape)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    normal = rng.standard_normal(tuple(int(s) for s in shape)).astype(np.float32)
    return np.float32(1) + np.float32(0.1) * normal if is_scale else normal
