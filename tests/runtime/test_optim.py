"""The optimizer against torch: schedule and groups as stored, AdamW against its formula."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax.runtime import optim
from avs_jax.runtime.run_config import check_run_config
from configs.segment import segment_config


def toy_config(**keys):
    config = segment_config()
    config.optim.groups = (
        (r"back/.*bias", 0.1, 0.0),
        (r"back/.*", 0.1, 1.0),
        (r".*", 1.0, 1.0),
    )
    config.optim.frozen = (r"audio/.*",)
    config.optim.update(keys)
    return config


def toy_params(seed=0):
    rng = np.random.default_rng(seed)
    params = {
        "back": {"fc": {"kernel": rng.normal(size=(3, 2)), "bias": rng.normal(size=2)}},
        "head": {"kernel": rng.normal(size=(2, 2))},
        "audio": {"kernel": rng.normal(size=4)},
    }
    return {k: {n: _float32(v) for n, v in part.items()} for k, part in params.items()}


def _float32(x):
    if isinstance(x, dict):
        return {k: _float32(v) for k, v in x.items()}
    return jnp.asarray(x, jnp.float32)


def test_schedule_is_the_originals(golden_dir):
    tables = json.loads((golden_dir / "golden_lr.json").read_text())
    for name, table in tables.items():
        schedule = optim.make_schedule(table["base_lr"], table["max_iter"], table["power"])
        for step, (head, _) in table["lr_head_and_backbone_at_iteration"].items():
            np.testing.assert_allclose(schedule(int(step)), head, rtol=2e-6, err_msg=name)
        assert schedule(table["max_iter"]) == 0


def test_warmup_rises_linearly_and_meets_the_decay():
    schedule = optim.make_schedule(1.0, 100, 1.0, warmup_steps=4)
    got = [float(schedule(step)) for step in range(5)]
    np.testing.assert_allclose(got, [0.25, 0.99 * 0.5, 0.98 * 0.75, 0.97, 0.96], rtol=1e-6)


@pytest.mark.parametrize("batch,rate", [(2, 1e-4), (8, 2e-4)])
def test_learning_rate_follows_the_square_root_of_the_batch(batch, rate):
    config = segment_config()
    config.train.batch_size = batch
    assert optim.base_learning_rate(config) == pytest.approx(rate)
    config.optim.learning_rate = 3e-3
    assert optim.base_learning_rate(config) == 3e-3


def test_three_updates_match_the_adamw_formula():
    """Against torch.optim.AdamW's formula in float64, gradients above and below the clip."""
    config = toy_config(learning_rate=1e-2, weight_decay=0.5, clip_norm=1.0, power=0.9)
    config.train.steps = 10
    params = toy_params()
    trainable, frozen = optim.split_frozen(params, config.optim.frozen)
    assert sorted(frozen) == ["audio/kernel"]
    optimizer, _ = optim.make_optimizer(params, config)
    state = optimizer.init(trainable)
    factors = {"back/fc/kernel": (0.1, 1), "back/fc/bias": (0.1, 0), "head/kernel": (1, 1)}
    assert sorted(trainable) == sorted(factors)
    want = {path: np.asarray(x, np.float64) for path, x in trainable.items()}
    m = {path: np.zeros(x.shape) for path, x in want.items()}
    v = {path: np.zeros(x.shape) for path, x in want.items()}
    for step, scale in enumerate([10.0, 1e-2, 3.0]):
        rng = np.random.default_rng(step)
        grads = {p: (rng.normal(size=x.shape) * scale).astype(np.float32) for p, x in want.items()}
        updates, state = optimizer.update(grads, state, trainable)
        trainable = {path: trainable[path] + updates[path] for path in trainable}
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grads.values()))
        rate = 1e-2 * (1 - step / 10) ** 0.9
        for path, (a, b) in factors.items():
            g = grads[path] * min(1.0, 1.0 / (norm + 1e-6))
            m[path] = 0.9 * m[path] + 0.1 * g
            v[path] = 0.999 * v[path] + 0.001 * g**2
            m_hat, v_hat = m[path] / (1 - 0.9 ** (step + 1)), v[path] / (1 - 0.999 ** (step + 1))
            want[path] *= 1 - rate * a * b * 0.5
            want[path] -= rate * a * m_hat / (np.sqrt(v_hat) + 1e-8)
            np.testing.assert_allclose(trainable[path], want[path], rtol=2e-5, atol=1e-6)


def test_the_first_moment_may_be_stored_in_bfloat16():
    """It is rounded to 8 bits between steps and nowhere else; the second one is unchanged."""
    updates = {}
    for dtype in ("float32", "bfloat16"):
        config = toy_config(learning_rate=1e-2, moment_dtype=dtype)
        trainable, _ = optim.split_frozen(toy_params(), config.optim.frozen)
        optimizer, _ = optim.make_optimizer(toy_params(), config)
        state = optimizer.init(trainable)
        for step in range(4):
            rng = np.random.default_rng(step)
            grads = {
                p: jnp.asarray(1 + rng.random(x.shape), "float32") for p, x in trainable.items()
            }
            updates[dtype], state = optimizer.update(grads, state, trainable)
        moments = state[1]
        assert {str(x.dtype) for x in moments.mu.values()} == {dtype}
        assert {str(x.dtype) for x in moments.nu.values()} == {"float32"}
    for path, want in updates["float32"].items():
        got = updates["bfloat16"][path]
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, want, rtol=2**-6)
        assert not np.array_equal(got, want)


def test_other_dtypes_of_the_moments_are_an_error():
    with pytest.raises(ValueError, match=r"optim.moment_dtype = 'float16': .*bfloat16"):
        check_run_config(toy_config(moment_dtype="float16"))


def test_a_path_without_a_group_is_named():
    with pytest.raises(ValueError, match=r"no row matches \['head/kernel'\].*back/\.\*"):
        optim.assign_groups(["back/kernel", "head/kernel"], ((r"back/.*", 1.0, 1.0),))


def test_a_frozen_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"'adio/\.\*' matches no parameter.*audio/kernel"):
        optim.split_frozen(toy_params(), (r"adio/.*",))


def test_groups_are_counted_for_the_log():
    text = optim.describe_groups(toy_params(), toy_config())
    assert "back/.*bias: 1 tensors, 2 values, learning rate x0.1, weight decay x0" in text
    assert "frozen: 1 tensors, 4 values" in text


def test_frozen_parameters_have_no_optimizer_state():
    config = toy_config()
    params = toy_params()
    optimizer, _ = optim.make_optimizer(params, config)
    trainable, _ = optim.split_frozen(params, config.optim.frozen)
    assert "audio" not in str(optimizer.init(trainable))
