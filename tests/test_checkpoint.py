"""Checkpoints: what is kept, what a killed save leaves, and on which devices a state comes back."""

import logging
import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from avs_jax.runtime import checkpoint, run_checkpoints, sharding, stored_config
from avs_jax.runtime.step import TrainState
from configs.segment import segment_config

ROOT = pathlib.Path(__file__).resolve().parent.parent


def make_config(fsdp=1):
    config = segment_config()
    config.train.mesh.fsdp = fsdp
    return config


def make_state(step=3, mesh=None, seed=0):
    rng = np.random.default_rng(seed)
    params = {
        "backbone": {"fc": {"kernel": rng.normal(size=(256, 96)), "bias": rng.normal(size=96)}},
        "logit_scale": rng.normal(size=()),
    }
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    flat = {"backbone/fc/kernel": params["backbone"]["fc"]["kernel"]}
    state = TrainState(
        step=jnp.asarray(step, jnp.int32),
        params=params,
        batch_stats={"ama": {"bn1": {"mean": jnp.ones(4) * seed}}},
        opt_state=optax.adam(1e-3).init(flat),
    )
    if mesh is None:
        return state
    return jax.device_put(state, sharding.tree_shardings(state, mesh))


def as_target(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert jax.tree.structure(a) == jax.tree.structure(b)


@pytest.mark.parametrize("count,fsdp", [(8, 4), (2, 1), (1, 1)])
def test_a_state_saved_on_eight_devices_comes_back_on_any_number(tmp_path, count, fsdp):
    config = make_config(fsdp=2)
    state = make_state(mesh=sharding.make_mesh(config))
    assert state.params["backbone"]["fc"]["kernel"].sharding.spec == PartitionSpec("fsdp", None)
    checkpoints = run_checkpoints.Checkpoints(tmp_path, config)
    checkpoints.save(state, 3)
    checkpoints.close()

    other = make_config(fsdp=fsdp)
    target = make_state(seed=1, mesh=sharding.make_mesh(other, jax.devices()[:count]))
    checkpoints = run_checkpoints.Checkpoints(tmp_path, other)
    restored, position = checkpoints.restore(as_target(target))
    checkpoints.close()
    assert position == 3
    assert_same(restored, state)
    for got, want in zip(jax.tree.leaves(restored), jax.tree.leaves(target), strict=True):
        assert got.sharding == want.sharding


def test_the_newest_two_and_the_best_are_kept(tmp_path):
    checkpoints = run_checkpoints.Checkpoints(tmp_path, make_config())
    scores = {1: None, 2: 0.9, 3: 0.1, 4: None, 5: None}
    for step, score in scores.items():
        state = make_state(step, seed=step)
        checkpoints.save(state, step, None if score is None else {"mIoU": score, "f_beta": 0.5})
    with pytest.raises(RuntimeError, match="step 5 was not saved.*2, 4, 5"):
        checkpoints.save(make_state(5), 5)
    checkpoints.close()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "4", "5"]
    assert checkpoint.find_checkpoint(tmp_path).name == "2"  # the best, not the newest
    params, batch_stats, config = checkpoint.load_variables(tmp_path)
    assert_same(params, jax.tree.map(np.asarray, make_state(seed=2).params))
    assert batch_stats["ama"]["bn1"]["mean"].tolist() == [2.0] * 4
    assert config.optim.clip_norm == 0.01
    params, _, _ = checkpoint.load_variables(tmp_path / "checkpoints" / "4")
    assert_same(params, jax.tree.map(np.asarray, make_state(seed=4).params))


def test_an_empty_run_restores_nothing(tmp_path):
    checkpoints = run_checkpoints.Checkpoints(tmp_path, make_config())
    assert checkpoints.restore(as_target(make_state())) is None
    checkpoints.close()
    with pytest.raises(FileNotFoundError, match=r"looked for .*/checkpoints/STEP.*found: \['check"):
        checkpoint.load_variables(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        checkpoint.load_variables(tmp_path / "nowhere")


def test_another_configuration_is_an_error_that_shows_the_difference(tmp_path):
    checkpoints = run_checkpoints.Checkpoints(tmp_path, make_config())
    checkpoints.save(make_state(), 3)
    checkpoints.close()
    config = make_config()
    config.train.log_every = 1
    config.evaluate.batch_size = 7
    config.data.data_dir = "/elsewhere"
    checkpoints = run_checkpoints.Checkpoints(tmp_path, config)
    assert checkpoints.restore(as_target(make_state())) is not None
    config.model.num_classes = 71  # a reference: the data's number changes with it
    config.optim.frozen = ()
    with pytest.raises(ValueError) as error:
        checkpoints.restore(as_target(make_state()))
    checkpoints.close()
    text = str(error.value)
    assert "model.num_classes: 2 in the checkpoint, 71 now" in text
    assert "data.num_classes: 2 in the checkpoint, 71 now" in text
    assert "optim.frozen: ['audio_backbone/.*'] in the checkpoint, [] now" in text
    assert "log_every" not in text and "evaluate" not in text


def test_a_key_younger_than_the_checkpoint_holds_as_given(tmp_path, capsys):
    old = make_config()
    del old.model.fusion.map_dropout
    del old.train.ema_decay
    checkpoints = run_checkpoints.Checkpoints(tmp_path, old)
    checkpoints.save(make_state(), 3)
    checkpoints.close()
    config = make_config()
    config.model.fusion.map_dropout = 0.2
    checkpoints = run_checkpoints.Checkpoints(tmp_path, config)
    assert checkpoints.restore(as_target(make_state())) is not None
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].endswith("model.fusion.map_dropout = 0.2, train.ema_decay = 0.0")
    config.optim.clip_norm = 0.5  # a difference stays one
    with pytest.raises(ValueError, match="clip_norm: 0.01 in the checkpoint, 0.5 now$"):
        checkpoints.restore(as_target(make_state()))
    checkpoints.close()


def test_a_key_that_exists_no_more_is_an_error_unless_it_was_removed(tmp_path, monkeypatch):
    old = make_config()
    old.model.fusion.bygone = 3
    checkpoints = run_checkpoints.Checkpoints(tmp_path, old)
    checkpoints.save(make_state(), 3)
    checkpoints.close()
    checkpoints = run_checkpoints.Checkpoints(tmp_path, make_config())
    with pytest.raises(ValueError, match="model.fusion.bygone: 3 in the checkpoint, 'absent' now"):
        checkpoints.restore(as_target(make_state()))
    monkeypatch.setattr(stored_config, "REMOVED_KEYS", (r"model\.fusion\.bygone",))
    assert checkpoints.restore(as_target(make_state())) is not None
    checkpoints.close()


def test_the_history_of_validation_is_saved_with_the_state(tmp_path):
    checkpoints = run_checkpoints.Checkpoints(tmp_path, make_config())
    checkpoints.save(make_state(1), 1, {"mIoU": 0.5})
    checkpoints.save(make_state(2), 2)
    checkpoints.save(make_state(2), 2, {"mIoU": 0.1 + 0.2})  # in the place of the one without
    checkpoints.save(make_state(3), 3, {"mIoU": 0.5})  # no better than the best
    assert checkpoints.validation == run_checkpoints.Validation(0.5, 1, 2)
    assert checkpoints.is_evaluated(2)
    checkpoints.close()
    checkpoints = run_checkpoints.Checkpoints(tmp_path, make_config())
    assert checkpoints.validation == run_checkpoints.Validation()
    checkpoints.restore(as_target(make_state()))
    assert checkpoints.validation == run_checkpoints.Validation(0.5, 1, 2)
    checkpoints.close()


def test_a_full_disk_is_one_message(tmp_path, caplog):
    """What Orbax's threads log of it on the way is dropped, and nothing else."""
    log = logging.getLogger("absl")
    with pytest.raises(OSError, match="no space left for a checkpoint; the last complete one"):
        with checkpoint.full_disk_is_os_error(tmp_path):
            try:
                raise ValueError("RESOURCE_EXHAUSTED: No space left on device [28]")
            except ValueError as error:
                log.error("a thread raised an exception", exc_info=error)
                log.error("failed: %s", error)
                log.error("something else", exc_info=ValueError("NOT_FOUND"))
                raise
    assert [record.getMessage() for record in caplog.records] == ["something else"]
    with pytest.raises(ValueError, match="NOT_FOUND"):
        with checkpoint.full_disk_is_os_error(tmp_path):
            raise ValueError("NOT_FOUND")


def test_other_tensors_are_an_error_that_names_them(tmp_path):
    checkpoints = run_checkpoints.Checkpoints(tmp_path, make_config())
    checkpoints.save(make_state(), 3)
    state = make_state()
    fc = state.params["backbone"]["fc"]
    state.params["backbone"] = {"fc": {"kernel": fc["kernel"][:, :9], "bais": fc["bias"]}}
    with pytest.raises(ValueError) as error:
        checkpoints.wait()
        checkpoints.restore(as_target(state))
    checkpoints.close()
    text = str(error.value)
    assert "params/backbone/fc/bais (96,): not in the checkpoint" in text
    assert "params/backbone/fc/bias (96,): not in the model" in text
    assert "params/backbone/fc/kernel: (256, 96) in the checkpoint, (256, 9) in the model" in text


def test_parameters_alone_go_through_a_directory_of_their_own(tmp_path):
    state = make_state()
    checkpoint.save_variables(tmp_path / "a", {"params": state.params}, make_config())
    params, batch_stats, config = checkpoint.load_variables(tmp_path / "a")
    assert_same(params, jax.tree.map(np.asarray, state.params))
    assert batch_stats == {} and config.name == "s4_vct"
    assert isinstance(params["logit_scale"], np.ndarray)


KILLED = """
    import os, signal, sys
    import numpy as np, jax.numpy as jnp, optax
    from avs_jax.runtime import run_checkpoints
    from avs_jax.runtime.step import TrainState
    from configs.segment import segment_config

    checkpoints = run_checkpoints.Checkpoints(sys.argv[1], segment_config())
    for step in (1, 2):
        params = {"x": {"kernel": jnp.asarray(np.random.default_rng(step).normal(size=4_000_000))}}
        state = TrainState(jnp.asarray(step), params, {}, optax.sgd(0.1).init(params))
        checkpoints.save(state, step)
        if step == 1:
            checkpoints.wait()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_save_cut_off_by_kill_9_is_ignored_and_can_be_made_again(tmp_path):
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    assert process.returncode == -signal.SIGKILL
    state = TrainState(
        jnp.asarray(0), {"x": {"kernel": jnp.zeros(4_000_000)}}, {}, optax.sgd(0.1).init({})
    )
    checkpoints = run_checkpoints.Checkpoints(tmp_path, segment_config())
    restored, position = checkpoints.restore(as_target(state))
    assert position == 1
    want = np.random.default_rng(1).normal(size=4_000_000).astype(np.float32)
    np.testing.assert_array_equal(restored.params["x"]["kernel"], want)
    checkpoints.save(state, 2)
    checkpoints.close()
    assert checkpoint.find_checkpoint(tmp_path).name == "2"
    assert not list((tmp_path / "checkpoints").glob("*tmp*"))
