"""The golden baselines of AVSBench: their configurations, weights, inputs and comparisons.

tests/golden/tpavi/ holds what the originals computed in float32 on a CPU: block.npz the TPAVI block
alone, model_{resnet50,pvt}.npz whole models in evaluation, train_step.npz one training step each,
losses_{binary,classes}.npz the losses. The goldens of whole models take normalized images and
VGGish's embedding, so `GoldenTPAVI` takes those. Gradients of these random models are those of a
net with kinks: an error of 1e-6 in the images, from undoing their normalization, moves some by a
thousandth.
"""

import functools
import json
import unittest.mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from avs_jax.convert.rules import apply_rules
from avs_jax.convert.tpavi_names import tpavi_rules
from avs_jax.models import tpavi
from avs_jax.models.tpavi import TPAVI
from avs_jax.ops.frames import fold_frames
from tests.backbone_files import golden_state
from tests.conftest import GOLDEN
from tests.golden.compare import shapes_of
from tests.golden.weights import rand_input

FOLDER = GOLDEN / "tpavi"
RESNET50 = {"name": "resnet50", "depths": (3, 4, 6, 3), "width": 64, "trained_norms": True}
PVT_V2 = {
    "name": "pvt_v2",
    "embed_dims": (64, 128, 320, 512),
    "depths": (3, 6, 40, 3),
    "num_heads": (1, 2, 5, 8),
    "mlp_ratios": (4, 4, 4, 4),
    "sr_ratios": (8, 4, 2, 1),
    "drop_path_rate": 0.1,
}
BACKBONES = {"resnet50": RESNET50, "pvt": PVT_V2}


class GoldenTPAVI(TPAVI):
    """TPAVI on normalized images and on embeddings: `embedding` [B, T, 128] of the batch."""

    def _encode_audio(self, batch):
        return batch["embedding"]

    def _encode_images(self, *args):
        with unittest.mock.patch.object(tpavi, "prepare_images", fold_frames):
            return super()._encode_images(*args)


def model_config(backbone="resnet50", setting="ms3", **changes):
    """config.model of a published variant, with changes; `backbone` may be a section of its own."""
    config = {
        "num_classes": 71 if setting == "avss" else 2,
        "hidden_dim": 256,
        "backbone": BACKBONES[backbone] if isinstance(backbone, str) else backbone,
        "audio_backbone": {"name": "vggish", "width": 64, "embedding": (4096, 4096, 128)},
        "audio_mean": 0.0,
        "audio_std": 1.0,
        "tpavi_stages": (0, 1, 2, 3),
        "tpavi_mode": "dot",
        "tpavi_va": True,
        "tpavi_vv": False,
        "tpavi_audio_bias": setting != "avss",
        "attention_frames": 5,
        "padded_in_statistics": setting == "avss",
        "remat": "none",
        "dtype": "float32",
    }
    return config | changes


def small_config(**changes):
    """A tiny model with every part; its weights are random."""
    small = {
        "hidden_dim": 16,
        "backbone": {"name": "resnet50", "depths": (1, 1, 1, 1), "width": 4, "trained_norms": True},
        "audio_backbone": {"name": "vggish", "width": 2, "embedding": (8, 128)},
    }
    return model_config(**(small | changes))


@functools.cache
def golden(name):
    """The arrays of golden/tpavi/{name}.npz, and its cases."""
    arrays = dict(np.load(FOLDER / f"{name}.npz"))
    return arrays, json.loads(str(arrays.pop("cases_json")))


@functools.cache
def entries(backbone, setting):
    """Name -> (shape, dtype) of a published state dict; that of MS3 has the names of S4."""
    setting = "s4" if setting == "ms3" else setting
    table = json.loads((FOLDER / f"names_tpavi_{backbone}_{setting}.json").read_text())["entries"]
    return {name: (tuple(shape), dtype) for name, shape, dtype in table}


def state_of(backbone, setting, stages=(0, 1, 2, 3)):
    """The state dict of a golden model."""
    found = entries(backbone, setting)
    blocks = tuple(f"tpavi_b{stage + 1}." for stage in stages)
    return golden_state(
        {n: e for n, e in found.items() if not n.startswith("tpavi_b") or n.startswith(blocks)}
    )


def inputs(case, seed_images, seed_audio, flag=None):
    """The batch of a golden case."""
    clips, frames, size = case["B"], case["T"], case["size"]
    shape = clips, frames
    images = np.moveaxis(rand_input(seed_images, (clips * frames, 3, size, size)), 1, -1)
    return {
        "images": images.reshape(*shape, size, size, 3),
        "log_mel": np.zeros((*shape, 96, 64), np.float32),
        "embedding": np.maximum(rand_input(seed_audio, (*shape, 128)), 0),
        "valid": np.array(flag or [1] * (clips * frames)).reshape(shape) > 0,
    }


def fill(model, config, state, batch):
    """Variables of a model, from a state dict."""
    tree = jax.eval_shape(lambda: model.init(jax.random.key(0), batch))
    shapes = shapes_of(tree["params"])
    shapes |= {f"batch_stats/{k}": v for k, v in shapes_of(tree.get("batch_stats", {})).items()}
    flat = apply_rules(state, tpavi_rules(config), shapes)
    filled = traverse_util.unflatten_dict(flat, sep="/")
    return {"batch_stats": filled.pop("batch_stats", {}), "params": filled}


def flat_tree(tree, prefix=""):
    """Path -> NumPy array."""
    flat = traverse_util.flatten_dict(tree, sep="/")
    return {prefix + path: np.asarray(value) for path, value in flat.items()}


def random_variables(model, batch, seed=0):
    """Random variables whose norms do something: fresh TPAVI blocks add nothing."""
    tree = jax.eval_shape(lambda: model.init(jax.random.key(0), batch))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        value = rng.standard_normal(leaf.shape).astype(np.float32)
        name = path[-1].key
        if name in ("scale", "var"):
            return jnp.asarray(1 + 0.1 * np.abs(value))
        fan_in = int(np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 100
        return jnp.asarray(value / np.sqrt(fan_in, dtype=np.float32))

    return jax.tree.map_with_path(draw, tree)


def random_batch(clips=2, frames=5, size=64, seed=0):
    """Raw inputs of spec.py."""
    rng = np.random.default_rng(seed)
    return {
        "images": rng.integers(0, 256, (clips, frames, size, size, 3)).astype(np.uint8),
        "log_mel": rng.standard_normal((clips, frames, 96, 64)).astype(np.float32),
        "valid": np.ones((clips, frames), bool),
    }


def assert_probe(value, name, arrays, tolerance, where=None):
    """`value`, in the torch layout, at the stored places, relative to the largest value there.

    Args:
      value: the whole array.
      name: of the golden group, which has shape, probe_idx and probe_val.
      arrays: the golden file.
      tolerance: relative.
      where: index arrays -> bool, the places that count; None: all.
    """
    value, shape = np.asarray(value), tuple(arrays[f"{name}/shape"])
    assert value.shape == shape, name
    places, expected = arrays[f"{name}/probe_idx"], arrays[f"{name}/probe_val"]
    counts = np.ones(len(places), bool)
    if where is not None:
        counts = where(np.unravel_index(places, shape))
    assert counts.sum() >= min(20, len(places)), name
    np.testing.assert_allclose(
        value.reshape(-1)[places][counts],
        expected[counts],
        rtol=0,
        atol=tolerance * float(np.abs(expected).max()),
        err_msg=name,
    )
