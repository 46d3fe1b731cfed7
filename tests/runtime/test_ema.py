"""The average of the parameters against its formula, and where it is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from avs_jax.programs import export_weights
from avs_jax.runtime import sharding
from avs_jax.runtime.checkpoint import Checkpoint
from avs_jax.runtime.ema import ema_variables, init_ema, update_ema
from avs_jax.runtime.run_checkpoints import Checkpoints
from avs_jax.runtime.run_config import check_run_config
from configs.segment import segment_config
from tests.runtime.test_checkpoint import as_target, assert_same, make_state


def test_an_update_matches_the_formula():
    rng = np.random.default_rng(0)
    values = [rng.normal(size=(31, 3)).astype(np.float32) for _ in range(30)]
    ema = init_ema({"a/b": jnp.asarray(values[0])}, {"bn": {"mean": jnp.zeros(3)}}, 0.6)
    want, mean = values[0].astype(np.float64), np.zeros(3)
    update = jax.jit(update_ema, static_argnames="decay")
    for step, value in enumerate(values[1:], 1):
        stats = {"bn": {"mean": jnp.full(3, float(step))}}
        ema = update(ema, {"a/b": value}, stats, jnp.asarray(step), decay=0.6)
        d = min(0.6, (1 + step) / (10 + step))  # reaches 0.6 at step 12.5
        want, mean = d * want + (1 - d) * value, d * mean + (1 - d) * step
    np.testing.assert_allclose(ema["params"]["a/b"], want, rtol=1e-5, atol=1e-6)
    params, stats = ema_variables({"a": {"b": values[-1]}, "frozen": values[0]}, ema)
    np.testing.assert_array_equal(params["a"]["b"], ema["params"]["a/b"])
    np.testing.assert_array_equal(params["frozen"], values[0])
    np.testing.assert_allclose(stats["bn"]["mean"], mean, rtol=1e-5)


def test_no_decay_is_no_average_and_a_wrong_one_an_error():
    assert init_ema({"a": jnp.zeros(2)}, {}, 0.0) == {}
    assert update_ema({}, {"a": jnp.zeros(2)}, {}, jnp.asarray(1), 0.0) == {}
    for decay in (1.0, -0.1):
        with pytest.raises(ValueError, match=r"train.ema_decay = .*expected 0"):
            check_run_config(ConfigDict({"train": {"ema_decay": decay}}))


def averaged_state(config, seed=0, with_stats=True):
    state = make_state(seed=seed)
    trainable = {"backbone/fc/kernel": state.params["backbone"]["fc"]["kernel"] + 1}
    stats = state.batch_stats if with_stats else {}
    state = type(state)(
        state.step, state.params, stats, state.opt_state, init_ema(trainable, stats, 0.5)
    )
    return jax.device_put(state, sharding.tree_shardings(state, sharding.make_mesh(config)))


@pytest.mark.parametrize("with_stats", [True, False])
def test_it_is_sharded_like_the_parameters_and_restored(tmp_path, with_stats):
    config = segment_config()
    config.train.mesh.fsdp = 2
    config.train.ema_decay = 0.5
    state = averaged_state(config, with_stats=with_stats)
    average = state.ema["params"]["backbone/fc/kernel"]
    assert average.dtype == jnp.float32
    assert average.sharding == state.params["backbone"]["fc"]["kernel"].sharding
    assert not average.sharding.is_fully_replicated
    checkpoints = Checkpoints(tmp_path, config)
    checkpoints.save(state, 3, {"mIoU": 0.5})
    checkpoints.wait()
    target = as_target(averaged_state(config, seed=1, with_stats=with_stats))
    assert_same(checkpoints.restore(target)[0], state)
    checkpoints.close()

    stored = Checkpoint.find(tmp_path)
    assert stored.choose_weights() == ("raw", "ema")
    raw, average = (stored.variables(name)[0] for name in ("raw", "ema"))
    difference = average["backbone"]["fc"]["kernel"] - raw["backbone"]["fc"]["kernel"]
    np.testing.assert_allclose(difference, 1, atol=1e-5)
    np.testing.assert_array_equal(average["backbone"]["fc"]["bias"], raw["backbone"]["fc"]["bias"])
    assert_same(stored.variables()[0], average)  # preferred
    for weights, params in (("raw", raw), ("ema", average), ("auto", average)):
        flags = [f"--checkpoint={tmp_path}", "--format=orbax", f"--weights={weights}"]
        flags.append(f"--output={tmp_path / weights}")
        assert export_weights.main(["export_weights", *flags]) == 0
        assert_same(Checkpoint.find(tmp_path / weights).variables()[0], params)


def test_a_checkpoint_without_an_average(tmp_path):
    """The default writes none, and older checkpoints lack the item."""
    config = segment_config()
    checkpoints = Checkpoints(tmp_path, config)
    checkpoints.save(make_state(), 3)
    checkpoints.wait()
    assert_same(checkpoints.restore(as_target(make_state(seed=1)))[0], make_state())
    with pytest.raises(ValueError, match=r"3 has no average of the parameters to resume from"):
        checkpoints.restore(as_target(averaged_state(config)))
    checkpoints.close()
    stored = Checkpoint.find(tmp_path)
    assert stored.choose_weights() == ("raw",)
    with pytest.raises(ValueError, match=r"weights = 'ema': .*/3 has no average"):
        stored.variables("ema")
    with pytest.raises(ValueError, match=r"weights = 'mean': choose auto, raw or ema"):
        stored.variables("mean")
