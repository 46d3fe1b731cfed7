"""The weights of the golden SAM2 from their names and shapes alone, numpy only.

Learned embeddings and tokens are standard normal, residual scales (`gamma`) 1 + 0.1 n, kernels
normal with variance 1 / fan-in, other weights 1 + 0.1 n, and biases 0.02 n. Names and shapes are
those of the PyTorch modules.
"""

import math
import re
import zlib

import numpy as np

_UNIT = re.compile(
    r"(^|\.)(pos_embed|pos_embed_window|positional_encoding_gaussian_matrix|maskmem_tpos_enc|no_mem_embed|no_mem_pos_enc|no_obj_ptr"
    r"|no_obj_embed_spatial|point_embeddings\.\d+\.weight|not_a_point_embed\.weight|no_mask_embed\.weight|iou_token\.weight"
    r"|mask_tokens\.weight|obj_score_token\.weight)$"
)
_KEEP = re.compile(r"(^|\.)(_gamma_scale|kx|ky|position_ids|token_type_ids)$")


def _normal(name, shape):
    rng = np.random.default_rng(zlib.crc32(name.encode("utf-8")))
    return rng.standard_normal(tuple(int(s) for s in shape)).astype(np.float32)


def refer_value(name, shape, integer=False):
    if integer or _KEEP.search(name):
        return None
    n = _normal(name, shape)
    if _UNIT.search(name):
        return n
    leaf = name.rsplit(".", 1)[-1]
    if leaf.startswith("gamma"):
        return np.float32(1) + np.float32(0.1) * n
    if leaf == "running_mean":
        return np.float32(0.1) * n
    if leaf == "running_var":
        return np.float32(1) + np.float32(0.1) * np.abs(n)
    if len(shape) >= 2:
        return n * np.float32(1.0 / math.sqrt(float(np.prod(shape[1:], dtype=np.int64))))
    if leaf == "weight":
        return np.float32(1) + np.float32(0.1) * n
    return np.float32(0.02) * n
