"""RAFT: the original's numbers block by block, both correlations, padding, tables."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from avs_jax.convert.rules import apply_rules, invert_rules
from avs_jax.convert.tables import raft_rules
from avs_jax.models.backbones import raft
from tests.conftest import GOLDEN
from tests.golden.compare import shapes_of
from tests.golden.weights import avs_value, rand_input

MODELS = ("raft_large", "raft_small")
CASE = "a_128x160"


@functools.cache
def golden(model: str):
    return dict(np.load(GOLDEN / f"golden_{model}.npz"))


def state_dict(model: str) -> dict[str, np.ndarray]:
    """The published file's names and shapes, with weights by rule."""
    entries = json.loads((GOLDEN / f"names_{model}.json").read_text())["entries"]
    state = {}
    for name, shape, dtype in entries:
        value = avs_value(name, shape, integer=dtype == "int64")
        if name.startswith("update_block.flow_head.conv2."):
            value = value * np.float32(0.25)
        state[name] = np.zeros(shape, dtype) if value is None else value
    return state


@functools.cache
def target_shapes(model: str) -> dict[str, tuple[int, ...]]:
    pictures = jnp.zeros((1, 128, 128, 3), jnp.uint8)
    init = functools.partial(raft.RAFT(model).init, num_iterations=1)
    tree = jax.eval_shape(init, jax.random.key(0), pictures, pictures)
    stats = {f"batch_stats/{k}": v for k, v in shapes_of(tree.get("batch_stats", {})).items()}
    return shapes_of(tree["params"]) | stats


@functools.cache
def variables(model: str):
    flat = apply_rules(state_dict(model), raft_rules(), target_shapes(model))
    tree = traverse_util.unflatten_dict(flat, sep="/")
    stats = tree.pop("batch_stats", {})
    return {"params": tree, "batch_stats": stats}


@functools.cache
def estimate(model: str, num_iterations: int, **fields):
    module = raft.RAFT(model, **fields)
    return jax.jit(
        lambda tree, first, second: module.apply(tree, first, second, num_iterations, True)
    )


def channels_first(x):
    return np.moveaxis(np.asarray(x), -1, 1)


def assert_probe(found, name, golden, tolerance=1e-4):
    """`found`, in the torch layout, at the stored places; relative to the tensor's largest value."""
    found = np.asarray(found)
    assert found.shape == tuple(golden[f"{name}/shape"]), name
    scale = max(abs(golden[f"{name}/stats"][2:4]))
    values = found.reshape(-1)[golden[f"{name}/probe_idx"]]
    np.testing.assert_allclose(
        values, golden[f"{name}/probe_val"], rtol=0, atol=tolerance * scale, err_msg=name
    )


def assert_close(found, expected, tolerance=1e-4):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=tolerance * scale)


@functools.cache
def run(model: str, correlation: str = "all_pairs"):
    data = golden(model)
    pair = (data[f"{CASE}/image{i}"][None] for i in (1, 2))
    return jax.device_get(estimate(model, 12, correlation=correlation)(variables(model), *pair))


@pytest.mark.parametrize("model", MODELS)
def test_flow_at_every_stated_iteration(model):
    flows, seen = run(model)
    data = golden(model)
    for name, field in (("fmap1", "first"), ("fmap2", "second"), ("context_out", "context")):
        assert_probe(channels_first(seen[field]), f"{CASE}/full_{name}", data)
    for iteration in (1, 6, 12):
        expected = data[f"{CASE}/flow_iter{iteration}"]
        assert_close(channels_first(flows[iteration - 1]), expected, 2e-4)
