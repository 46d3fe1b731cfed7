"""Divided attention: the published block's numbers, what each step can see, and a silent start."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from avs_jax.models import build_model
from avs_jax.models.layers import sine_code
from avs_jax.models.temporal.divided import DividedBlock, DividedEncoder
from avs_jax.models.temporal.timesformer import TimeSformer
from avs_jax.spec import InputError
from avs_jax.tasks import make_task
from configs import ms3_vct_divided, parts
from tests import small
from tests.cases_golden import arrays, assert_golden, state_dict
from tests.golden.compare import shapes_of

pytestmark = pytest.mark.slow

SIZES = {
    "num_classes": 5,
    "num_frames": 4,
    "image_size": 32,
    "patch_size": 8,
    "hidden_dim": 32,
    "num_layers": 3,
    "num_heads": 4,
    "ffn_dim": 128,
}
KEY = "divided_space_time/"
PLACES = {  # name within a layer -> ours
    "temporal_layernorm": "norm0",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "temporal_attention.attention": "time_attention",
    "temporal_attention.output.dense": "time_attention/out",
    "temporal_dense": "time_projection",
    "attention.attention": "space_attention",
    "attention.output.dense": "space_attention/out",
    "intermediate.dense": "mlp/fc1",
    "output.dense": "mlp/fc2",
}
EMBEDDINGS = {
    "cls_token": ("class_embedding", lambda x: x[0, 0]),
    "position_embeddings": ("position_embedding", lambda x: x[0]),
    "time_embeddings": ("time_embedding", lambda x: x[0]),
    "patch_embeddings.projection.weight": (
        "patch_embedding",
        lambda x: np.transpose(x, (2, 3, 1, 0)),
    ),
    "patch_embeddings.projection.bias": ("patch_bias", lambda x: x),
}


def place(name, value):
    """Paths in the tree and arrays of one tensor of Hugging Face's state dict."""
    stem, kind = name.removeprefix("timesformer.").rsplit(".", 1)
    leaf = {"bias": "bias"}.get(kind, "kernel" if value.ndim == 2 else "scale")
    if name.startswith("timesformer.embeddings."):
        path, change = EMBEDDINGS[name.removeprefix("timesformer.embeddings.")]
        return {path: change(value)}
    if not stem.startswith("encoder."):
        return {f"{'head' if stem == 'classifier' else 'norm'}/{leaf}": value.T}
    _, _, layer, part = stem.split(".", 3)
    if part.endswith(".qkv"):
        here = f"layers_{layer}/{PLACES[part.removesuffix('.qkv')]}"
        thirds = zip(("query", "key", "value"), np.split(value, 3), strict=True)
        return {f"{here}/{projection}/{leaf}": third.T for projection, third in thirds}
    return {f"layers_{layer}/{PLACES[part]}/{leaf}": value.T}


@functools.cache
def params():
    flat = {}
    for name, value in state_dict("timesformer", "divided_space_time").items():
        flat |= place(name, value)
    shapes = jax.eval_shape(TimeSformer(**SIZES).init, jax.random.key(0), video())["params"]
    assert shapes_of(shapes) == {path: x.shape for path, x in flat.items()}
    return traverse_util.unflatten_dict(flat, sep="/")


def video(name="video"):
    return np.moveaxis(arrays("timesformer")[f"in/{name}"], 2, -1)


@jax.jit
def run(tree, clip):
    steps = {}
    return TimeSformer(**SIZES).apply({"params": tree}, clip, collect=steps), steps


def test_stages_of_the_published_model():
    logits, steps = run(params(), video())
    assert_golden("timesformer", f"{KEY}logits", logits)
    after = steps.pop("layer0_after_space")
    for name, value in steps.items():
        shape = arrays("timesformer")[KEY + name].shape
        assert_golden("timesformer", KEY + name, np.reshape(value, shape))
    assert len(steps) == 8
    expected = arrays("timesformer")[f"{KEY}layer0_after_space"][:, 1:]
    patches = np.swapaxes(after, 1, 2).reshape(expected.shape)
    np.testing.assert_allclose(patches, expected, rtol=0, atol=2e-5)
    logits, _ = run(params(), video()[:, ::-1])
    assert_golden("timesformer", f"{KEY}reversed_logits", logits)


@pytest.mark.parametrize(
    "case", ["T6", "size", *(pytest.param(t, marks=pytest.mark.slow) for t in ("T3", "T8"))]
)
def test_other_lengths_and_sizes(case):
    logits, steps = run(params(), video(f"video_{case}"))
    assert_golden("timesformer", f"{KEY}{case}/embeddings", steps["embeddings"])
    assert_golden("timesformer", f"{KEY}{case}/logits", logits)


@pytest.mark.slow
def test_gradients_of_the_published_model():
    labels = arrays("timesformer")["in/labels"]

    @jax.jit
    @jax.value_and_grad
    def loss(tree):
        log_p = jax.nn.log_softmax(TimeSformer(**SIZES).apply({"params": tree}, video()))
        return -jnp.take_along_axis(log_p, labels[:, None], axis=1).mean()

    value, grads = loss(params())
    assert_golden("timesformer", f"{KEY}loss", value)
    assert_golden("timesformer", f"{KEY}grad/time_embeddings", grads["time_embedding"][None])
    assert_golden("timesformer", f"{KEY}grad/cls_token", grads["class_embedding"][None, None])


def block_and_params(seed=0):
    block = DividedBlock(num_heads=2, ffn_dim=12)
    x = np.random.default_rng(seed).standard_normal((1, 4, 6, 8)).astype(np.float32)
    tree = jax.device_get(jax.jit(block.init)(jax.random.key(seed), x)["params"])
    rng = np.random.default_rng(seed + 1)
    shape = tree["time_projection"]["kernel"].shape
    tree["time_projection"]["kernel"] = rng.standard_normal(shape).astype(np.float32)

    @jax.jit
    def run(x, valid=None):
        steps = {}
        out, _ = block.apply({"params": tree}, x, valid=valid, collect=steps)
        time = jnp.swapaxes(steps["time_update"].reshape(1, 6, 4, 8), 1, 2)
        return x + time, steps["after_space"], out

    return run, x


def test_what_each_step_sees():
    """A change in frame 2 at patch 3 reaches that place in time, and all places only in frame 2."""
    run, x = block_and_params()
    changed = x.copy()
    changed[0, 2, 3] += np.arange(8)  # a constant would vanish in the norm
    (time, space, _), (time2, space2, _) = run(x), run(changed)
    moved = np.abs(time - time2).max(-1)[0] > 0
    assert moved[:, 3].all() and moved.sum() == 4
    moved = np.abs(space - space2).max(-1)[0] > 0
    assert moved.all()  # every frame saw a patch that changed in time
    no_time = DividedBlock(num_heads=2, ffn_dim=12)
    tree = jax.jit(no_time.init)(jax.random.key(0), x)["params"]  # W_f is zero
    outs = [jax.jit(no_time.apply)({"params": tree}, y)[0] for y in (x, changed)]
    moved = np.abs(outs[0] - outs[1]).max(-1)[0] > 0
    assert moved[2].all() and moved.sum() == 6


def test_orders_do_not_matter_where_no_code_tells_them():
    run, x = block_and_params()
    patches, frames = np.array([3, 0, 5, 1, 4, 2]), np.array([2, 0, 3, 1])
    out = np.asarray(run(x)[2])
    np.testing.assert_allclose(run(x[:, :, patches])[2], out[:, :, patches], atol=1e-5)
    np.testing.assert_allclose(run(x[:, frames])[2], out[:, frames], atol=1e-5)


def test_padded_frames_are_not_seen():
    run, x = block_and_params()
    valid = np.array([[True, True, True, False]])
    other = x.copy()
    other[:, 3] = 7
    seen = [np.asarray(run(y, valid)[2])[:, :3] for y in (x, other)]
    np.testing.assert_array_equal(*seen)
    assert np.abs(np.asarray(run(x)[2])[:, :3] - seen[0]).max() > 1e-3


def test_the_encoder_starts_as_the_identity_and_learns():
    encoder = DividedEncoder(level="res4", num_layers=1, hidden_dim=8, num_heads=2, ffn_dim=8)
    rng = np.random.default_rng(0)
    features = {
        level: rng.standard_normal((6, side, side, 4)).astype(np.float32)
        for level, side in (("res4", 3), ("res5", 2))
    }
    tree = jax.jit(encoder.init, static_argnums=2)(jax.random.key(0), features, 3)

    def total(tree):
        out = encoder.apply(tree, features, 3)
        return (out["res4"] * np.arange(4, dtype=np.float32)[None, None, None]).sum(), out

    (_, out), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(tree)
    for level, value in features.items():
        np.testing.assert_array_equal(out[level], value)
    assert np.abs(grads["params"]["output_projection"]["kernel"]).max() > 0
    codes = sine_code(jnp.arange(5), 8)
    assert codes.shape == (5, 8) and np.ptp(codes, axis=0).min() > 0
    np.testing.assert_array_equal(sine_code(jnp.array([[4, 1]]), 8)[0], codes[np.array([4, 1])])


@pytest.mark.slow
def test_switching_it_on_changes_no_output():
    config = small.tiny_config("none")
    batch = small.train_batch(config)
    inputs = {k: batch[k] for k in ("images", "log_mel", "valid", "frame_index")}
    inputs = {k: np.repeat(v[:1], 2, axis=1) for k, v in inputs.items()}
    inputs["frame_index"] = np.arange(2, dtype=np.int32)[None]
    variables = small.random_variables(config, (64, 64))["params"]
    before = jax.jit(build_model(config.model).apply)({"params": variables}, inputs)
    temporal = parts.divided()
    temporal.update(hidden_dim=16, num_heads=2, ffn_dim=16, num_layers=1)
    config.model.temporal = temporal
    model = build_model(config.model)
    fresh = jax.jit(model.init)(jax.random.key(3), inputs)["params"]["temporal"]
    apply = jax.jit(model.apply)
    after = apply({"params": variables | {"temporal": fresh}}, inputs)
    for name in ("pred_logits", "pred_masks"):
        np.testing.assert_array_equal(after[name], before[name])
    shape = fresh["output_projection"]["kernel"].shape
    fresh["output_projection"]["kernel"] = np.random.default_rng(0).random(shape, np.float32)
    moved = apply({"params": variables | {"temporal": fresh}}, inputs)
    assert np.abs(moved["pred_masks"] - before["pred_masks"]).max() > 1e-3


def test_frames_that_meet_need_all_of_them():
    config = ms3_vct_divided.get_config("tiny")
    assert make_task(config).model.temporal["name"] == "divided"
    config.data.train_frames = "supervised"
    with pytest.raises(InputError, match="frames meet in model.temporal, so training needs"):
        make_task(config)
    config.model.temporal.level = "res6"
    config.data.train_frames = "all"
    with pytest.raises(InputError, match="model.temporal.level = 'res6': expected one of"):
        make_task(config)
