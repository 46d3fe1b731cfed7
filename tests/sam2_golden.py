"""The small golden SAM2.1: weights by their rule, inputs, and comparison within the noise.

tests/golden/sam2/ holds arrays of the original code, measured once: image.npz and video.npz (stages
and outputs; "_subN" arrays take every N-th row and column), language.npz (SALMA's SAM2.0 with
tokens of language), and names.json.gz (the state dicts of all published sizes, in the original's
names and HF's).
"""

import functools
import gzip
import json
import pathlib

import jax
import numpy as np
from flax import traverse_util

from avs_jax.convert.rules import apply_rules, invert_rules
from avs_jax.convert.sam2_names import sam2_names, sam2_rules
from avs_jax.models import build_model
from avs_jax.models.sam2.model import SAM2
from avs_jax.runtime.checkpoint import save_variables
from configs.sam2 import sam2_config, vary
from tests.golden.compare import shapes_of
from tests.golden.refer.weights import refer_value
from tests.golden.weights import rand_input

FOLDER = pathlib.Path(__file__).resolve().parent / "golden" / "sam2"
SIDE = 256
SMALL = {
    "backbone": {
        "name": "hiera",
        "embed_dim": 24,
        "num_heads": 1,
        "depths": (1, 2, 3, 2),
        "windows": (8, 4, 14, 7),
        "global_blocks": (5,),
        "pos_grid": 7,
    },
    "width": 64,
    "memory_dim": 16,
    "num_memory_layers": 2,
    "ffn_dim": 128,
    "num_maps": 7,
    "num_pointers": 16,
    "map_stride": 1,
    "max_prompted": 0,
    "codes_occlusion": True,
    "codes_pointer_times": True,
    "stability_threshold": 0.0,
    "hard_prompts": False,
    "prompt_slots": 4,
    "memory_dtype": "float32",
    "dtype": "float32",
}
SCORE_BIAS = "sam_mask_decoder.pred_obj_score_head.layers.2.bias"


@functools.cache
def arrays(name):
    """The arrays of NAME.npz."""
    return dict(np.load(FOLDER / f"{name}.npz"))


@functools.cache
def meta(name):
    """The facts of NAME.npz."""
    return json.loads(bytes(arrays(name)["meta/json"]))


@functools.cache
def name_tables():
    """Size -> the names, shapes and counts of the published models."""
    with gzip.open(FOLDER / "names.json.gz", "rt") as file:
        return json.load(file)


def assert_golden(name, path, value, floor=3e-6):
    """`value`, channel-last, agrees with an array of NAME.npz within ten times its noise.

    Args:
      path: of the array; with "_subN", every N-th row and column of `value` is compared.
      floor: of the noise, for arrays that happen to be exact in float32.
    """
    expected, value = arrays(name)[path], np.asarray(value)
    if "_sub" in path:
        step = int(path.rsplit("_sub", 1)[1])
        axes = (1, 2) if value.ndim == 4 else (-2, -1)
        index = [slice(None)] * value.ndim
        for axis in axes:
            index[axis] = slice(None, None, step)
        value = value[tuple(index)]
    if value.ndim == 4:
        value = np.moveaxis(value, -1, 1)
    tolerance = 10 * max(meta(name)["noise"].get(path, 0.0), floor)
    np.testing.assert_allclose(
        value.reshape(expected.shape), expected, rtol=0, atol=tolerance, err_msg=path
    )


def image(seed, height=SIDE, width=SIDE):
    """[1, height, width, 3], by the goldens' rule."""
    return np.moveaxis(rand_input(seed, (1, 3, height, width)), 1, -1)


def frame(number):
    """Frame of the golden video, [1, 256, 256, 3]."""
    return image(2000) + np.float32(0.5) * image(2001 + number)


def golden_model(**fields):
    return SAM2(**(SMALL | fields))


def param_shapes(model, side=64):
    """Path -> shape of the model's parameters."""
    images = np.zeros((1, side, side, 3), np.float32)
    init = functools.partial(model.init, jax.random.key(0), images, method="initialize")
    return shapes_of(jax.eval_shape(init)["params"])


def state_dict(model, score_bias=0.5):
    """The golden weights with the original's names; score_bias None: also by the rule."""
    shapes = param_shapes(model)
    names = sam2_names({key: getattr(model, key) for key in SMALL})
    blank = {path: np.broadcast_to(np.int8(0), shape) for path, shape in shapes.items()}
    found = invert_rules(blank, sam2_rules(), names)
    state = {name: refer_value(name, x.shape) for name, x in found.items()}
    if score_bias is not None:
        state[SCORE_BIAS] = np.full_like(state[SCORE_BIAS], score_bias)
    return state


@functools.cache
def golden_params(score_bias=0.5):
    """The golden weights."""
    model = golden_model()
    tree = apply_rules(state_dict(model, score_bias), sam2_rules(), param_shapes(model))
    return traverse_util.unflatten_dict(tree, sep="/")


def run(model, method, *args, params=None, jit=True, mutable=False):
    """A method of the model with the golden weights."""
    variables = {"params": golden_params() if params is None else params}

    def call(variables, *args):
        return model.apply(variables, *args, method=method, mutable=mutable)

    return (jax.jit(call) if jit else call)(variables, *args)


def save_smallest_sam2(folder):
    """Writes random weights of the variant `:tiny`."""
    config = vary(sam2_config("tiny"), "tiny")
    rng = np.random.default_rng(1)
    flat = {
        path: rng.standard_normal(shape).astype(np.float32) / max(1, shape[0]) ** 0.5
        for path, shape in param_shapes(build_model(config.model, SAM2)).items()
    }
    params = traverse_util.unflatten_dict(flat, sep="/")
    save_variables(folder, {"params": params, "batch_stats": {}}, config)
