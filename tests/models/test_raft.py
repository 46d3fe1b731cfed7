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
from avs_jax.models.flow import raft
from avs_jax.ops import correlation
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


def assert_probe(found, name, golden, tolerance=2e-5):
    """`found`, in the torch layout, at the stored places; relative to the largest value."""
    found = np.asarray(found)
    assert found.shape == tuple(golden[f"{name}/shape"]), name
    scale = max(abs(golden[f"{name}/stats"][2:4]))
    values = found.reshape(-1)[golden[f"{name}/probe_idx"]]
    np.testing.assert_allclose(
        values, golden[f"{name}/probe_val"], rtol=0, atol=tolerance * scale, err_msg=name
    )


def assert_close(found, expected, tolerance=2e-5):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=tolerance * scale)


@functools.cache
def run(model: str):
    data = golden(model)
    pair = (data[f"{CASE}/image{i}"][None] for i in (1, 2))
    return jax.device_get(estimate(model, 12)(variables(model), *pair))


@pytest.mark.parametrize("model", MODELS)
def test_flow_at_every_stated_iteration(model):
    flows, intermediates = run(model)
    data = golden(model)
    for name, field in (("fmap1", "first"), ("fmap2", "second"), ("context_out", "context")):
        assert_probe(channels_first(intermediates[field]), f"{CASE}/full_{name}", data)
    for iteration in (1, 6, 12):
        expected = data[f"{CASE}/flow_iter{iteration}"]
        assert_close(channels_first(flows[iteration - 1]), expected, 2e-5)


@functools.cache
def lookup(model: str, where: str):
    """Correlations looked up as the golden file did; both ways, [1, C, h, w]."""
    _, intermediates = run(model)
    n, height, width = intermediates["first"].shape[:3]
    flow = np.zeros((n, 2, height, width), np.float32)
    if where == "randflow":
        flow = rand_input(40, flow.shape, scale=3.0)
    points = np.moveaxis(flow, 1, -1) + raft.cell_grid(height, width)[None]
    points = jnp.asarray(points.reshape(n, -1, 2))
    radius = raft.VARIANTS[model].radius
    f1, f2 = jnp.asarray(intermediates["first"]), jnp.asarray(intermediates["second"])
    found = (
        jax.jit(lambda: correlation.look_up(correlation.all_pairs(f1, f2), points, radius))(),
        jax.jit(
            lambda: correlation.look_up_on_demand(f1, correlation.pyramid(f2), points, radius)
        )(),
    )
    return [channels_first(x.reshape(n, height, width, -1)) for x in found], flow


@pytest.mark.parametrize("model", MODELS)
def test_both_lookups_agree(model):
    data = golden(model)
    stored = {"zero": "zero_flow", "randflow": "randflow_seed40_scale3"}
    for where, name in stored.items():
        (found, on_demand), _ = lookup(model, where)
        assert_probe(found, f"{CASE}/corr_lookup_{name}", data)
        assert_close(on_demand, found, 1e-5)
    _, intermediates = run(model)
    volume = correlation.all_pairs(
        jnp.asarray(intermediates["first"]), jnp.asarray(intermediates["second"])
    )
    for level, products in enumerate(volume):
        rows = np.asarray(products)[0, ::40, None]
        assert_close(rows, data[f"{CASE}/corr_level{level}_rows_every_40"])


@pytest.mark.parametrize("model", MODELS)
def test_one_update_from_a_random_flow(model):
    data, variant = golden(model), raft.VARIANTS[model]
    _, intermediates = run(model)
    (found, _), flow = lookup(model, "randflow")
    context = jnp.asarray(intermediates["context"])
    params = variables(model)["params"]
    hidden, delta, motion = raft.UpdateBlock(variant, jnp.dtype("float32")).apply(
        {"params": params["update_block"]},
        jnp.tanh(context[..., : variant.hidden]),
        jax.nn.relu(context[..., variant.hidden :]),
        jnp.moveaxis(found, 1, -1),
        jnp.moveaxis(flow, 1, -1),
    )
    assert_probe(channels_first(motion), f"{CASE}/motion_features_randflow", data)
    assert_probe(channels_first(hidden), f"{CASE}/hidden_after_randflow", data)
    assert_close(channels_first(delta), data[f"{CASE}/delta_flow_randflow"])
    if variant.has_mask:
        predictor = raft.MaskPredictor(jnp.dtype("float32"))
        mask = predictor.apply({"params": params["mask_predictor"]}, hidden)
        assert_probe(channels_first(mask), f"{CASE}/up_mask_randflow", data)


def test_odd_sizes_are_padded_as_for_sintel():
    assert raft.pad_to_stride(135, 171) == ((0, 1), (2, 3))
    assert raft.pad_to_stride(96, 384) == ((16, 16), (0, 0))
    data = golden("raft_small")
    padding = (*raft.pad_to_stride(135, 171), (0, 0))
    pair = [np.pad(data[f"b_135x171/image{i}"], padding, mode="edge")[None] for i in (1, 2)]
    flows, _ = estimate("raft_small", 12)(variables("raft_small"), *pair)
    assert_close(channels_first(flows[-1]), data["b_135x171/flow_iter12"], 2e-5)
    for iteration in (1, 6):
        name = f"b_135x171/flow_iter{iteration}"
        assert_probe(channels_first(flows[iteration - 1]), name, data, 2e-5)


@pytest.mark.slow
def test_last_flow_alone_on_demand_and_bfloat16():
    """Without the earlier flows; the other correlation; half precision stays near."""
    data = golden("raft_small")
    pair = [data[f"{CASE}/image{i}"][None] for i in (1, 2)]
    expected = run("raft_small")[0][1]

    def last(**fields):
        apply = functools.partial(raft.RAFT("raft_small", **fields).apply, num_iterations=2)
        flow, _ = jax.jit(apply)(variables("raft_small"), *pair)
        assert flow.dtype == jnp.float32
        return np.asarray(flow)

    assert_close(last(correlation="on_demand"), expected, 1e-5)
    error = np.abs(last(dtype="bfloat16") - expected)
    assert 0 < error.mean() < 0.05 * np.abs(expected).mean()


@pytest.mark.parametrize("model", MODELS)
def test_names_of_both_sources(model):
    """princeton-vl's names fill what torchvision's fill; both come back as they were."""
    mapping = json.loads((GOLDEN / f"names_{model}_princeton_map.json").read_text())
    state, rules, shapes = state_dict(model), raft_rules(), target_shapes(model)
    flat = apply_rules(state, rules, shapes)
    theirs = {new: state[old] for old, new in mapping["torchvision_to_princeton"].items()}
    theirs |= {name: np.zeros(7) for name in mapping["princeton_duplicates"]}
    assert set(theirs) == {name for name, *_ in mapping["princeton_entries"]}
    again = apply_rules(theirs, rules, shapes)
    assert set(again) == set(flat) == set(shapes)
    assert all(np.array_equal(flat[path], again[path]) for path in flat)
    back = invert_rules(flat, rules, list(state))
    assert set(back) == {name for name in state if not name.endswith("num_batches_tracked")}
    assert all(np.array_equal(back[name], state[name]) for name in back)
    count = sum(x.size for path, x in flat.items() if not path.startswith("batch_stats"))
    assert count == {"raft_large": 5_257_536, "raft_small": 990_162}[model]


def test_invalid_values_are_named():
    def trace(height=128, second=None, num_iterations=1, **fields):
        first = jnp.zeros((1, height, 128, 3))
        second = first if second is None else second
        init = functools.partial(raft.RAFT(**fields).init, num_iterations=num_iterations)
        return jax.eval_shape(init, jax.random.key(0), first, second)

    for match, wrong in (
        ("RAFT variant 'raft_huge': choose one of", dict(variant="raft_huge")),
        ("correlation 'none': choose one of", dict(correlation="none")),
        ("120 x 128 px: the sides must be multiples of 8 and at least 128", dict(height=120)),
        ("132 x 128 px", dict(height=132)),
        ("second: axis H", dict(second=jnp.zeros((1, 136, 128, 3)))),
        ("0 iterations", dict(num_iterations=0)),
    ):
        with pytest.raises(ValueError, match=match):
            trace(**wrong)
