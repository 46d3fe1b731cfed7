"""Synchrony against its formulas, its start without effect, and what it can tell."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special

from avs_jax.losses.synchrony import synchrony_losses
from avs_jax.models import build_model
from avs_jax.models.fusion import sync
from avs_jax.models.fusion.sync import Sync, lag_weights, motion_sequences
from avs_jax.spec import InputError
from avs_jax.tasks import make_task
from configs import parts
from tests import small

N, R, G, LAG = 2, 14, 6, 3
FIELDS = {"width": 4, "max_lag": LAG, "near": 1, "reach": 1}


@pytest.fixture(scope="module")
def inputs():
    """(track, sound, mask features); frame 1 of the track is still."""
    rng = np.random.default_rng(0)
    track = rng.normal(size=(N, R, G, G, 2)).astype(np.float32) / 10
    track[1] = 0
    sound = np.abs(rng.normal(size=(N, R, 16))).astype(np.float32)
    return track, sound, rng.normal(size=(N, 8, 8, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def variables(inputs):
    return jax.jit(lambda: Sync(**FIELDS).init(jax.random.key(0), *inputs, (32, 32)))()


def encode(params, x):
    """SequenceEncoder in float64, [..., R, C]."""
    x = x - x.mean(-2, keepdims=True)
    for i, dilation in enumerate((1, 2, 4)):
        layer, length = params[f"conv_{i}"], x.shape[-2]
        places = [np.clip(np.arange(length) + (k - 2) * dilation, 0, length - 1) for k in range(5)]
        kernel = np.asarray(layer["kernel"], np.float64)
        x = sum(x[..., p, :] @ kernel[k] for k, p in enumerate(places)) + layer["bias"]
        if i < 2:
            x = x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2
    x = x - x.mean(-2, keepdims=True)
    return x / np.sqrt(np.square(x).sum((-2, -1), keepdims=True) + 1e-6)


def test_formula(inputs, variables):
    track, sound, features = inputs
    params = jax.tree.map(np.asarray, variables["params"])
    _, _, found = Sync(**FIELDS).apply(variables, *inputs, (32, 32))
    speed = np.linalg.norm(track[0].astype(np.float64), axis=-1)
    padded = np.pad(speed, ((0, 0), (1, 1), (1, 1)))
    around = sum(padded[:, i : i + G, j : j + G] for i in range(3) for j in range(3)) / 9
    y, x = 4, 0
    u, v = track[0, :, y, x].astype(np.float64).T
    axis = np.linalg.eigh([[u @ u, u @ v], [u @ v, v @ v]])[1][:, 1]
    columns = []
    for level in (np.log1p(speed[:, y, x] / 0.1), np.log1p(around[:, y, x] / 0.1)):
        columns += [level, np.diff(level, prepend=level[0])]
    signed = (u * axis[0] + v * axis[1]) / 0.1
    sequences, _ = motion_sequences(jnp.asarray(track), 1)
    ours = np.asarray(sequences[0, :, y * G + x], np.float64)
    np.testing.assert_allclose(ours[:, [0, 1, 3, 4]], np.stack(columns, 1), atol=1e-4)
    np.testing.assert_allclose(np.abs(ours[:, 2]), np.abs(signed), atol=1e-4)

    moves, heard = encode(params["motion"], ours), encode(params["sound"], sound[0])
    lags = range(-LAG, LAG + 1)

    def correlate(a, b):
        pairs = {lag: [(t, t - lag) for t in range(R) if 0 <= t - lag < R] for lag in lags}
        sums = [sum(a[t] @ b[s] for t, s in pairs[lag]) for lag in lags]
        return np.array([R / (R - abs(lag)) * x for lag, x in zip(lags, sums, strict=True)])

    match = correlate(moves, heard) / 0.1
    np.testing.assert_allclose(found["lags"][0, y, x], match, atol=2e-3)
    near = special.expit(4 * (1.5 - np.abs(np.array(lags))))
    far = np.where(correlate(heard, heard) > 0.7, 0, 1 - near)
    np.testing.assert_allclose(found["near"][0], near, atol=1e-5)
    np.testing.assert_allclose(found["far"][0], far, atol=1e-5)
    means = [np.log((np.exp(match) * w).sum() / w.sum()) for w in (near, far)]
    activity = around.mean(0)[y, x] / (around.mean(0)[y, x] + 0.02)
    score = activity * np.tanh((means[0] - means[1]) / 4)
    np.testing.assert_allclose(found["score"][0, y, x], score, atol=1e-3)
    scores, activities = (np.asarray(found[name][0]) for name in ("score", "activity"))
    mean = (scores * activities).sum() / activities.sum()
    relative = activities * (scores - mean)
    np.testing.assert_allclose(found["relative"][0], relative, atol=1e-5)
    best = np.unravel_index(scores.argmax(), scores.shape)
    assert found["lag"][0] == np.asarray(found["lags"][0])[best].argmax() - LAG


def test_nothing_moves_no_evidence(inputs, variables):
    _, _, found = Sync(**FIELDS).apply(variables, *inputs, (32, 32))
    for name in ("evidence", "score", "relative", "activity"):
        assert not np.any(found[name][1]) and np.any(found[name][0]), name
    assert np.isfinite(found["gate"]).all()


def test_periodic_sounds_have_no_negatives_where_they_repeat():
    itself = jnp.asarray([[0.9, 0.1, 0.8, 1.0, 0.8, 0.1, 0.9]])
    near, far = lag_weights(itself, jnp.float32(0), 0)
    assert near[0, 3] > 0.85 and not np.any(far[0, jnp.array([0, 2, 3, 4, 6])])
    np.testing.assert_allclose(far[0, jnp.array([1, 5])], 1, atol=1e-2)
    near, far = lag_weights(itself, jnp.float32(1), 0)  # motion is one sample late
    assert near[0, 4] > 0.85 and far[0, 2] > 0.9 and not np.any(far[0, jnp.array([1, 3, 5])])


@pytest.mark.parametrize("at", sync.AT)
def test_it_starts_without_effect_and_acts_where_it_says(inputs, variables, at):
    track, sound, features = inputs
    model = Sync(**FIELDS, at=at)
    names = {"queries": ["query_proj"], "features": ["feature_proj"]}
    acts = names.get(at, ["query_proj", "feature_proj"])
    params = {k: v for k, v in variables["params"].items() if not k.endswith("proj") or k in acts}
    pixel_weights, changed, found = model.apply({"params": params}, *inputs, (32, 32))
    assert (pixel_weights is None) == (at == "features") and (changed is None) == (at == "queries")
    assert pixel_weights is None or not np.any(pixel_weights)
    if changed is not None:
        np.testing.assert_array_equal(changed, features)
    kernel = np.arange(12, dtype=np.float32).reshape(2, 6)
    if at != "queries":
        params = params | {"feature_proj": {"kernel": kernel}}
        _, changed, found = model.apply({"params": params}, *inputs, (28, 20))
        z = np.stack([found["score"], found["relative"]], -1) * found["gate"][:, None, None, None]
        np.testing.assert_array_equal(changed[:, 7:], features[:, 7:])  # padding
        np.testing.assert_array_equal(changed[:, :, 5:], features[:, :, 5:])
        cell = sync.resize_bilinear(z, (7, 5))[0, 3, 2] @ kernel
        np.testing.assert_allclose(changed[0, 3, 2] - features[0, 3, 2], cell, atol=1e-4)


@pytest.mark.slow
def test_a_cell_that_goes_with_the_sound_is_found():
    """Left and right halves move after curves of their own; sounds follow the left one. The losses
    alone teach it, on other curves than those that are judged; a late sound takes it away."""
    rng = np.random.default_rng(0)
    length, cells = 40, 2

    def draw(count):
        curves = np.repeat(rng.uniform(0, 1, (count, 2, length // 4)), 4, axis=2)
        track = np.zeros((count, length, cells, cells, 2), np.float32)
        track[..., : cells // 2, 0] = 0.3 * curves[:, 0, :, None, None]
        track[..., cells // 2 :, 1] = 0.3 * curves[:, 1, :, None, None]
        sound = np.log(curves[:, 0, :, None] ** 2 + 0.05) + rng.normal(size=(count, length, 16)) / 4
        return track, sound.astype(np.float32)

    model = Sync(width=4, max_lag=8, near=1, reach=0)
    features = np.zeros((8, 4, 4, 2), np.float32)
    truth = np.zeros((8, 1, 1, cells, cells), bool)
    truth[..., : cells // 2] = True
    targets = {
        "supervised": np.ones((8, 1), bool), "target_masks": truth,
        "target_labels": np.ones((8, 1, 1), np.int32), "target_valid": np.ones((8, 1, 1), bool),
    }  # fmt: skip
    config = small.tiny_config("none").loss

    def loss(params, track, sound):
        _, _, found = model.apply({"params": params}, track, sound, features, (16, 16))
        outputs = {f"sync_{name}": found[name][:, None] for name in sync.LOSS_OUTPUTS}
        return sum(synchrony_losses(outputs, targets, config, {}).values())

    optimizer = optax.adam(0.01)

    @jax.jit
    def step(params, state, *batch):
        grads = jax.grad(loss)(params, *batch)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state

    params = model.init(jax.random.key(0), *draw(8), features, (16, 16))["params"]
    state = optimizer.init(params)
    for _ in range(40):
        params, state = step(params, state, *draw(8))
    track, sound = draw(8)
    score = model.apply({"params": params}, track, sound, features, (16, 16))[2]["score"]
    left, right = score[..., : cells // 2].mean((1, 2)), score[..., cells // 2 :].mean((1, 2))
    # A few of the curves that nobody hears fit by chance.
    assert left.min() > 0.5 and right.mean() < 0.2 and (left > right).all()
    late = np.roll(sound, 5, axis=1)
    score = model.apply({"params": params}, track, late, features, (16, 16))[2]["score"]
    assert score[..., : cells // 2].mean() < 0.05


# ---- in the whole model ----


def list_config():
    """Tiny AMA and synchrony, on records with tracks."""
    config = small.tiny_config()
    config.data.track.update(source="stored", rate=5.0, window_seconds=2.0)
    config.model.fusion = parts.join_fusions(config.model.fusion, parts.sync())
    parts.shrink_fusion(config.model.fusion, parts.TINY_FUSIONS)
    return config


def tracked_batch(config):
    batch = small.train_batch(config)
    rng = np.random.default_rng(0)
    batch["motion_track"] = rng.normal(size=batch["motion_track"].shape).astype(np.float16)
    batch["sound_track"] = rng.normal(size=batch["sound_track"].shape).astype(np.float32)
    return batch


@pytest.mark.slow
def test_a_checkpoint_without_it_gives_the_same_masks():
    """Bit for bit, for one row and for a list of rows, until the projections are trained."""
    config = list_config()
    batch = tracked_batch(config)
    drawn = small.random_variables(config, (64, 64))
    params, statistics = drawn["params"], drawn["batch_stats"]
    params["sync"]["query_proj"]["kernel"] *= 0
    params["sync"]["feature_proj"]["kernel"] *= 0
    plain = small.tiny_config()
    inputs = make_task(config).inputs(batch)

    def masks(config, params):
        names = ("pred_masks", "pred_logits")
        variables = {"params": params, "batch_stats": statistics}
        found = jax.jit(build_model(config.model).apply)(variables, inputs)
        return [np.asarray(found[name]) for name in names], found

    without = {name: value for name, value in params.items() if name != "sync"}
    want, _ = masks(plain, without)
    got, found = masks(config, params)
    for a, b in zip(want, got, strict=True):
        np.testing.assert_array_equal(a, b)
    assert found["sync_evidence"].shape == (8, 1, 24, 24) and np.any(found["sync_evidence"])
    assert found["sync_gate"].shape == found["sync_lag"].shape == (8, 1)
    params["sync"]["query_proj"]["kernel"] += 1
    assert np.any(masks(config, params)[0][0] != want[0])


@pytest.mark.slow
def test_a_list_of_rows_is_a_training_step():
    """Shapes only: both rows' parameters, terms and logged values."""
    config = list_config()
    task, batch = make_task(config), tracked_batch(config)
    assert task.outputs[-5:] == ("motion_weight", "motion_gate", *sync.STAGE.outputs)
    streams = {name: jax.random.key(i) for i, name in enumerate(task.rng_streams)}

    def run(batch):
        inputs = task.inputs(batch)
        variables = task.model.init(jax.random.key(0), inputs)
        outputs, _ = task.model.apply(
            variables, inputs, train=True, rngs=streams, mutable=["batch_stats"]
        )
        return variables["params"], task.loss(outputs, batch, streams["loss"], None)[1]

    params, terms = jax.eval_shape(run, batch)
    assert {"ama", "sync"} <= params.keys()
    assert {"loss_sync_lag", "loss_sync_rank", "loss_mask"} <= terms.keys()
    assert task.logged_params["sync_offset"] == "sync/offset"


@pytest.mark.parametrize("change, message", [
    ({"name": "ama+sinc"}, "choose one of"),
    ({"name": "ama+ama"}, "'ama' cannot be in a list"),
    ({"name": "ama+none"}, "'none' cannot be in a list"),
    ({"width": 3}, "model.fusion.width: 'ama\\+sync' has only the subsections ama, sync"),
    ({"sync": {"width": 0}}, "model.fusion.sync.width = 0: expected a whole number, at least 1"),
    ({"ama": {"at": "masks"}}, "model.fusion.ama.at = 'masks': expected one of"),
])  # fmt: skip
def test_a_bad_list_is_named(change, message):
    model = list_config().model.to_dict()
    model["fusion"] = {**model["fusion"], **change}
    with pytest.raises(InputError, match=message):
        build_model(model)


def test_an_unknown_key_of_a_row_is_named():
    config = list_config()
    config.model.fusion.sync.lag = 3
    model = build_model(config.model)
    with pytest.raises(InputError, match="model.fusion.sync.lag: Sync has no such field"):
        jax.eval_shape(model.init, jax.random.key(0), tracked_batch(list_config()))
