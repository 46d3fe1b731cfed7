"""VCT state dicts of any configuration, for tests that need a weight file."""

import json
import pathlib
import re

import jax
import numpy as np
from flax import traverse_util

from avs_jax.convert.rules import invert_rules
from avs_jax.convert.tables import vct_rules
from avs_jax.programs.weight_conversion import make_init
from tests.golden.compare import shapes_of
from tests.golden.weights import msda_offset_bias, vct_value

GOLDEN = pathlib.Path(__file__).parent / "golden"


def entries(dataset: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape of an official checkpoint: s4, ms3 or ss."""
    table = json.loads((GOLDEN / f"params_{dataset}_swinb384.json").read_text())
    return {name: tuple(shape) for name, (shape, _) in table["state_dict"].items()}


def state_dict(config, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """A state dict for the model of `config` with images of `size`, by the goldens' rule.

    What the converter leaves out is there too, small.
    """
    rules = vct_rules(config.model)
    shapes = shapes_of(jax.eval_shape(make_init(config, size))[0])
    blank = {path: np.broadcast_to(np.int8(0), shape) for path, shape in shapes.items()}
    found = {}
    for name in entries("s4" if config.model.num_prototypes else "ms3"):
        if not _exists(name, config.model):
            continue
        theirs = invert_rules(blank, rules, [name])
        if not theirs:
            found[name] = np.zeros(3, np.int64 if name.endswith("index") else np.float32)
        elif name == "criterion.logit_scale":
            found[name] = np.float32(np.log(1 / 0.07))
        elif name.endswith("sampling_offsets.bias"):
            decoder = config.model.pixel_decoder
            found[name] = msda_offset_bias(decoder.num_heads, 3, decoder.num_points)
        else:
            found[name] = vct_value(name, theirs[name].shape)
    return found


def flat(tree) -> dict[str, np.ndarray]:
    """Path -> leaf."""
    return traverse_util.flatten_dict(tree, sep="/")


def _exists(name: str, model) -> bool:
    """Whether a name of the official checkpoint exists in a model of fewer layers."""
    block = re.search(r"backbone\.layers\.(\d)\.blocks\.(\d+)", name)
    if block:
        return int(block[2]) < model.backbone.depths[int(block[1])]
    for pattern, count in (
        (r"transformer\.encoder\.layers\.(\d+)", model.pixel_decoder.num_layers),
        (r"predictor\.transformer_\w+_layers\.(\d+)", model.decoder.num_layers),
    ):
        layer = re.search(pattern, name)
        if layer and int(layer[1]) >= count:
            return False
    return model.pre_masks or not name.startswith(("pre_sam_backbone", "scale_factor"))
