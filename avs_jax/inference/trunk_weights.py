"""Which weights cached maps of an image encoder belong to (data/trunk_features.py)."""

import hashlib
import json
import re
from typing import Any

from ml_collections import ConfigDict

from avs_jax.data.trunk_features import TrunkFeatures
from avs_jax.runtime.checkpoint import Checkpoint
from avs_jax.runtime.checksums import tree_checksums
from avs_jax.spec import InputError

ENCODER = ("trunk", "neck", "conv_s0", "conv_s1")  # parts of SAM2 that make the maps
EXAMPLES = ("trunk/patch_embed/kernel", "neck/convs_0/kernel", "conv_s0/kernel", "conv_s1/kernel")


def encoder_weights(config: ConfigDict) -> tuple[dict[str, Any], str]:
    """SAM2's parameters that a run starts from, and the digest of its image encoder."""
    directory = config.init.sam2 or config.train.init_from
    if not directory:
        raise InputError(
            "config.init.sam2 is empty: cached features are those of pretrained weights, "
            "--config.init.sam2=DIR"
        )
    params, _ = Checkpoint.find(directory).variables()
    params = params.get("sam2", params)
    if not set(ENCODER) <= set(params):
        raise InputError(f"{directory}: not the weights of SAM2")
    sums = tree_checksums({name: params[name] for name in ENCODER})
    return params, hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()


def with_trunk_key(config: ConfigDict, stored: ConfigDict | None = None) -> ConfigDict:
    """The configuration with the digest of the weights that made its cached features.

    Args:
      stored: of the run to resume, which knows the digest; nothing needs its first weights anymore.

    Raises:
      InputError: other weights made them, or the image encoder is trained.
    """
    for path in EXAMPLES:
        if not any(re.fullmatch(rule, f"sam2/{path}") for rule in config.optim.frozen):
            raise InputError(
                f"config.data.trunk_features: config.optim.frozen does not match sam2/{path}, and "
                "cached features are those of a frozen image encoder"
            )
    found = TrunkFeatures(config.data.trunk_features, config.data.image_size).key
    wanted = stored.data.get("trunk_key") if stored is not None else None
    source = "those of the run" if wanted else config.init.sam2 or config.train.init_from
    if found != (wanted or encoder_weights(config)[1]):
        raise InputError(
            f"config.data.trunk_features = {config.data.trunk_features!r}: made by other weights "
            f"than {source}"
        )
    config = config.copy_and_resolve_references()
    config.data.trunk_key = found
    return config
