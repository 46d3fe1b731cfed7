"""Deterministic weights of the grounding goldens, from names and shapes alone.

Third rule set beside `vct_value` and `avs_value`. `ground_value(name, shape, salt="")` gives the
value of one entry of a PyTorch state dict (Linear [out, in], fused q/k/v stacked on axis 0), or
None where the entry keeps the value that the configuration gives it (the scalars of the gate). The
random stream is that of the other two: numpy's default_rng seeded with crc32 of the name. `salt` is
put in front of the name, and is "" for every file of this folder.
"""

import re
import zlib

import numpy as np

_CONFIGURED = re.compile(r"gating_function\.(mha_bias|mha_scale|ffn_alpha|ffn_beta)$")
_UNIT_NORMAL = re.compile(
    r"(query_embed\.weight|position_embeddings\.weight|global_rep_token|global_rep_pos|query_tokens)$"
)


def ground_value(name, shape, salt=""):
    if _CONFIGURED.search(name):
        return None
    shape = tuple(int(s) for s in shape)
    n = (
        np.random.default_rng(zlib.crc32((salt + name).encode("utf-8")))
        .standard_normal(shape)
        .astype(np.float32)
    )
    if name.endswith("activation.weight"):  # slope of a PReLU, one number
        return np.float32(0.25) + np.float32(0.1) * n
    if _UNIT_NORMAL.search(name):
        return n
    if len(shape) >= 2:
        return (n / np.float32(np.sqrt(np.prod(shape[1:])))).astype(np.float32)
    if name.endswith(".weight"):
        return np.float32(1) + np.float32(0.1) * n
    return np.float32(0.02) * n
