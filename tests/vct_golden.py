"""The golden models: tiny VCTs with the original's weights, their inputs and their outputs.

tests/golden/golden_tiny_{s4,ms3,ss}.npz hold every stage of the original, measured once.
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from avs_jax.convert.tables import vct_rules
from avs_jax.models import build_model
from configs.s4_vct import get_config
from tests.golden.compare import vct_params

FOLDER = pathlib.Path(__file__).resolve().parent / "golden"
CLASSES = {"s4": (2, 23), "ms3": (2, 0), "ss": (71, 71)}
DEPTHS = (2, 2, 2, 2)


def tiny_config(name):
    """config.model of golden_tiny_{name}."""
    config = get_config().model
    num_classes, num_prototypes = CLASSES[name]
    config.update(num_classes=num_classes, num_prototypes=num_prototypes)
    config.backbone.update(
        embed_dim=32, depths=DEPTHS, num_heads=(2, 4, 8, 16), window_size=6, drop_path_rate=0.0
    )
    return config


@functools.cache
def golden(name):
    """The arrays of golden_tiny_{name}."""
    return dict(np.load(FOLDER / f"golden_tiny_{name}.npz"))


def tiny_batch(name):
    """The golden inputs [B, T, ...]; of "ss", whose clips have 5 and 10 frames, B = 3 and T = 5."""
    arrays = golden(name)

    def join(field):
        return np.concatenate([arrays[f"in/{field}_{clip}"] for clip in (0, 1)])

    log_mel = join("audio_log_mel")[:, 0]
    if name == "ss":
        log_mel = log_mel[join("vid_temporal_mask_flag").astype(bool)]
    batch = {
        "images": np.moveaxis(join("images"), 1, -1),
        "pre_masks": np.moveaxis(join("pre_masks"), 1, -1),
        "log_mel": log_mel,
    }
    return {key: x.reshape(-1, 5, *x.shape[1:]) for key, x in batch.items()}


def tiny_names(name):
    """The entries of golden_tiny_{name}'s state dict: the official checkpoint's, fewer blocks."""
    entries = json.loads((FOLDER / f"params_{name}_swinb384.json").read_text())["state_dict"]

    def exists(entry):
        pieces = entry.split(".")
        return "blocks" not in pieces or int(pieces[4]) < DEPTHS[int(pieces[2])]

    return [entry for entry in entries if exists(entry)]


def tiny_params(name, model, batch):
    """The golden weights in our tree."""
    tree = jax.eval_shape(lambda: model.init(jax.random.key(0), batch))["params"]
    # The one entry whose golden value is the architecture's own.
    scale = {} if tree.pop("logit_scale", None) is None else {"logit_scale": np.log(1 / 0.07)}
    names = [entry for entry in tiny_names(name) if entry != "criterion.logit_scale"]
    params = vct_params(tree, vct_rules(tiny_config(name)), names)
    return params | jax.tree.map(jnp.float32, scale)


@functools.cache
def tiny_model(name):
    """The jitted model on its golden inputs, and its parameters: (params -> outputs, params)."""
    model, batch = build_model(tiny_config(name)), tiny_batch(name)
    return jax.jit(lambda params: model.apply({"params": params}, batch)), tiny_params(
        name, model, batch
    )


@functools.cache
def tiny_outputs(name):
    """Outputs of the model on the golden inputs, as NumPy arrays."""
    apply, params = tiny_model(name)
    return jax.tree.map(np.asarray, apply(params))


def channels_first(x):
    """[..., h, w, C] frames, clips still apart or not, to PyTorch's [N, C, h, w]."""
    x = np.asarray(x)
    return np.moveaxis(x.reshape(-1, *x.shape[-3:]), -1, 1)
