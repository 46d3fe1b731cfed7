"""Checkpoints: what is found, kept and refused; damage; states on other devices; older ones."""

import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import PartitionSpec
from ml_collections import ConfigDict

from avs_jax.runtime import sharding, stored_config
from avs_jax.runtime.checkpoint import Checkpoint, DamagedCheckpoint, save_variables
from avs_jax.runtime.orbax_items import full_disk_is_os_error
from avs_jax.runtime.run_checkpoints import Checkpoints, Validation
from avs_jax.runtime.step import TrainState
from avs_jax.runtime.stored_config import check_same_config, flat_config, update_stored
from avs_jax.spec import InputError
from configs import parts, qvh_qd_detr, refer_cma
from configs.segment import segment_config
from tests.small import tiny_config

ROOT = pathlib.Path(__file__).resolve().parents[2]


def make_config(fsdp=1):
    config = segment_config()
    config.train.mesh.fsdp = fsdp
    return config


def make_ama_config():
    config = make_config()
    config.model.fusion = parts.ama()
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
    checkpoints = Checkpoints(tmp_path, config)
    checkpoints.save(state, 3)
    checkpoints.close()

    other = make_config(fsdp=fsdp)
    target = make_state(seed=1, mesh=sharding.make_mesh(other, jax.devices()[:count]))
    checkpoints = Checkpoints(tmp_path, other)
    restored, position = checkpoints.restore(as_target(target))
    checkpoints.close()
    assert position == 3
    assert_same(restored, state)
    for got, want in zip(jax.tree.leaves(restored), jax.tree.leaves(target), strict=True):
        assert got.sharding == want.sharding


def test_the_state_may_be_donated_while_it_is_saved(tmp_path):
    state, expected = make_state(), jax.tree.map(np.array, make_state())
    checkpoints = Checkpoints(tmp_path, make_config())
    checkpoints.save(state, 3)
    jax.jit(lambda x: jax.tree.map(lambda y: y * 0 - 1, x), donate_argnums=0)(state)
    restored, _ = checkpoints.restore(as_target(make_state(seed=1)))
    checkpoints.close()
    assert_same(jax.tree.map(np.asarray, restored), expected)


def test_the_newest_two_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, make_config())
    scores = {1: None, 2: 0.9, 3: 0.1, 4: None, 5: None}
    for step, score in scores.items():
        state = make_state(step, seed=step)
        checkpoints.save(state, step, None if score is None else {"mIoU": score, "f_beta": 0.5})
    with pytest.raises(RuntimeError, match="step 5 was not saved.*2, 4, 5"):
        checkpoints.save(make_state(5), 5)
    checkpoints.close()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "4", "5"]
    best = Checkpoint.find(tmp_path)  # not the newest
    assert (best.name, best.step, best.run_directory) == ("2", 2, tmp_path)
    params, batch_stats = best.variables()
    assert_same(params, jax.tree.map(np.asarray, make_state(seed=2).params))
    assert batch_stats["ama"]["bn1"]["mean"].tolist() == [2.0] * 4
    assert best.config.optim.clip_norm == 0.01
    params, _ = Checkpoint.find(tmp_path / "checkpoints" / "4").variables()
    assert_same(params, jax.tree.map(np.asarray, make_state(seed=4).params))


def test_the_task_chooses_the_measure_of_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path, make_config(), measure="recall")
    for step, recall in ((1, 0.3), (2, 0.9), (3, 0.9), (4, 0.1), (5, float("nan"))):
        checkpoints.save(make_state(step), step, {"mIoU": step, "recall": recall})
    checkpoints.close()
    assert Checkpoint.find(tmp_path).name == "3"  # the later one of two that are equal
    with pytest.raises(InputError, match="the best checkpoint of this run has the best recall"):
        save_and_restore(tmp_path, make_config())


def save_and_restore(workdir, config):
    checkpoints = Checkpoints(workdir, config)
    try:
        return checkpoints.restore(as_target(make_state()))
    finally:
        checkpoints.close()


def test_an_empty_run_restores_nothing(tmp_path):
    assert save_and_restore(tmp_path, make_config()) is None
    with pytest.raises(FileNotFoundError, match=r"looked for .*/checkpoints/STEP.*found: \['check"):
        Checkpoint.find(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        Checkpoint.find(tmp_path / "nowhere")


def test_a_copied_step_is_still_a_step(run_of_two, tmp_path):
    shutil.copytree(run_of_two / "checkpoints" / "2", tmp_path / "copy")
    copy = Checkpoint.find(tmp_path / "copy")
    assert (copy.name, copy.step, copy.run_directory) == ("2", 2, tmp_path / "copy")
    save_variables(tmp_path / "7", {"params": make_state().params}, make_config())
    converted = Checkpoint.find(tmp_path / "7")
    assert (converted.name, converted.step) == ("converted", None)
    assert converted.run_directory == tmp_path / "7"


def test_another_configuration_is_an_error_that_shows_the_difference(tmp_path):
    checkpoints = Checkpoints(tmp_path, make_config())
    checkpoints.save(make_state(), 3)
    checkpoints.close()
    config = make_config()
    config.train.log_every = 1
    config.evaluate.batch_size = 7
    config.data.data_dir = "/elsewhere"
    checkpoints = Checkpoints(tmp_path, config)
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
    old = make_ama_config()
    del old.model.fusion.map_dropout
    del old.train.ema_decay
    checkpoints = Checkpoints(tmp_path, old)
    checkpoints.save(make_state(), 3)
    checkpoints.close()
    config = make_ama_config()
    config.model.fusion.map_dropout = 0.2
    checkpoints = Checkpoints(tmp_path, config)
    assert checkpoints.restore(as_target(make_state())) is not None
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].endswith("model.fusion.map_dropout = 0.2, train.ema_decay = 0.0")
    config.optim.clip_norm = 0.5  # a difference stays one
    with pytest.raises(ValueError, match="clip_norm: 0.01 in the checkpoint, 0.5 now$"):
        checkpoints.restore(as_target(make_state()))
    checkpoints.close()


def test_a_key_that_exists_no_more_is_an_error_unless_it_was_removed(tmp_path, monkeypatch):
    old = make_ama_config()
    old.model.fusion.bygone = 3
    checkpoints = Checkpoints(tmp_path, old)
    checkpoints.save(make_state(), 3)
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path, make_ama_config())
    with pytest.raises(ValueError, match="model.fusion.bygone: 3 in the checkpoint, 'absent' now"):
        checkpoints.restore(as_target(make_state()))
    monkeypatch.setattr(stored_config, "REMOVED_KEYS", (r"model\.fusion\.bygone",))
    assert checkpoints.restore(as_target(make_state())) is not None
    checkpoints.close()


def test_the_history_of_validation_is_saved_with_the_state(tmp_path):
    checkpoints = Checkpoints(tmp_path, make_config())
    checkpoints.save(make_state(1), 1, {"mIoU": 0.5})
    checkpoints.save(make_state(2), 2)
    checkpoints.save(make_state(2), 2, {"mIoU": 0.1 + 0.2})  # in the place of the one without
    checkpoints.save(make_state(3), 3, {"mIoU": 0.5})  # no better than the best
    assert checkpoints.validation == Validation(0.5, 1, 2)
    assert checkpoints.is_evaluated(2)
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path, make_config())
    assert checkpoints.validation == Validation()
    checkpoints.restore(as_target(make_state()))
    assert checkpoints.validation == Validation(0.5, 1, 2)
    checkpoints.close()


def test_a_full_disk_is_one_message(tmp_path, caplog):
    """What Orbax's threads log of it on the way is dropped, and nothing else."""
    log = logging.getLogger("absl")
    filters = list(log.filters)
    with pytest.raises(OSError, match="no space left for a checkpoint; the last complete one"):
        with full_disk_is_os_error(tmp_path):
            try:
                raise ValueError("RESOURCE_EXHAUSTED: No space left on device [28]")
            except ValueError as error:
                log.error("a thread raised an exception", exc_info=error)
                log.error("failed: %s", error)
                log.error("something else", exc_info=ValueError("NOT_FOUND"))
                raise
    assert [record.getMessage() for record in caplog.records] == ["something else"]
    with pytest.raises(ValueError, match="NOT_FOUND"):
        with full_disk_is_os_error(tmp_path):
            raise ValueError("NOT_FOUND")
    checkpoints = Checkpoints(tmp_path, make_config())
    assert len(log.filters) == len(filters) + 1  # while a save may run in the background
    checkpoints.close()
    assert log.filters == filters


def test_other_tensors_are_an_error_that_names_them(run_of_two):
    state = make_state()
    fc = state.params["backbone"]["fc"]
    params = {"backbone": {"fc": {"kernel": fc["kernel"][:, :9], "bais": fc["bias"]}}}
    params["logit_scale"] = state.params["logit_scale"]
    checkpoints = Checkpoints(run_of_two, make_config())
    with pytest.raises(InputError) as error:
        checkpoints.restore(as_target(dataclasses.replace(state, params=params)))
    checkpoints.close()
    lines = (
        "backbone/fc/bais (96,): not in the checkpoint",
        "backbone/fc/bias (96,): not in the model (nearest: {}backbone/fc/bais)",
        "backbone/fc/kernel: (256, 96) in the checkpoint, (256, 9) in the model",
    )
    best = Checkpoint.find(run_of_two)
    expected = "".join(f"\n  params/{line.format('params/')}" for line in lines)
    header = f"{best.directory} does not fit"
    assert str(error.value) == f"{header} the configuration, 3 tensor(s):{expected}"

    best.check_fits(state.params, state.batch_stats)
    with pytest.raises(InputError) as error:
        best.check_fits(jax.eval_shape(lambda: params), state.batch_stats, "config.model.backbone")
    expected = "".join(f"\n  {line.format('')}" for line in lines)
    assert str(error.value) == f"{header} config.model.backbone, 3 tensor(s):{expected}"
    with pytest.raises(InputError, match=r"25 tensor\(s\):(\n.*){20}\n  and 5 more$"):
        best.check_fits(state.params | {f"x{i}": np.ones(1) for i in range(25)}, state.batch_stats)


def test_parameters_alone_go_through_a_directory_of_their_own(tmp_path):
    params, kept = make_state().params, {"class/weight": np.arange(3.0)}
    save_variables(tmp_path / "a", {"params": params}, make_config(), kept)
    stored = Checkpoint.find(tmp_path / "a")
    read, batch_stats = stored.variables()
    assert_same(read, jax.tree.map(np.asarray, params))
    assert batch_stats == {} and stored.config.name == "s4_vct"
    assert isinstance(read["logit_scale"], np.ndarray)
    assert_same(stored.kept(), kept)


def test_one_copy_is_written_and_orbax_is_left_as_it_is(run_of_two):
    """Other checkpoints of the same process keep Orbax's defaults."""
    handler = ocp.type_handlers.get_type_handler(jax.Array)
    assert type(handler) is ocp.type_handlers.ArrayHandler and handler._use_replica_parallel
    kernel = Checkpoint.find(run_of_two).shapes["params"]["backbone"]["fc"]["kernel"]
    assert kernel.storage.chunk_shape == kernel.shape == (256, 96)


# ---- damage ----


@pytest.fixture(scope="module")
def run_of_two_once(tmp_path_factory):
    """A run with checkpoints of steps 1 and 2, the second one the best, from eight devices."""
    workdir = tmp_path_factory.mktemp("run")
    checkpoints = Checkpoints(workdir, make_config())
    for step in (1, 2):
        state = make_state(step, seed=step, mesh=sharding.make_mesh(make_config()))
        checkpoints.save(state, step, {"mIoU": 0.1 * step})
    checkpoints.close()
    return workdir


@pytest.fixture
def run_of_two(run_of_two_once, tmp_path):
    return pathlib.Path(shutil.copytree(run_of_two_once, tmp_path / "run"))


def data_file(directory):
    """The file with the largest array, the kernel."""
    return max((directory / "state").glob("ocdbt.process_0/d/*"), key=lambda p: p.stat().st_size)


def flip(path, place=None, count=1):
    data = bytearray(path.read_bytes())
    place = len(data) // 2 if place is None else place
    for i in range(place, place + count):
        data[i] ^= 0x5A
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("count", [1, 8])
def test_flipped_bytes_are_an_error_that_names_the_tensor(tmp_path, count):
    """In converted weights and the tensors kept with them."""
    params = {"fc": {"kernel": np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)}}
    save_variables(
        tmp_path / "a", {"params": params}, make_config(), {"old": params["fc"]["kernel"]}
    )
    for item, read in (("state", "variables"), ("kept", "kept")):
        folder = pathlib.Path(shutil.copytree(tmp_path / "a", tmp_path / item))
        data = max((folder / item).glob("ocdbt.process_0/d/*"), key=lambda p: p.stat().st_size)
        flip(data, count=count)
        with pytest.raises(DamagedCheckpoint) as error:
            getattr(Checkpoint.find(folder), read)()
        tensor = {"state": "params/fc/kernel", "kept": "old"}[item]
        assert str(error.value).startswith(f"{folder} is damaged: {item}/{tensor}")


def test_a_checkpoint_without_checksums_is_read_without(run_of_two):
    step = run_of_two / "checkpoints" / "2"
    shutil.rmtree(step / "checksums")
    params, _ = Checkpoint.find(run_of_two).variables()
    assert_same(params, jax.tree.map(np.asarray, make_state(seed=2).params))
    flip(data_file(step))
    Checkpoint.find(run_of_two).variables()  # nobody can tell


@pytest.mark.parametrize(
    "file", ["config/metadata", "loader/metadata", "validation/metadata", "metrics/metrics",
             "checksums/metadata", "state/_METADATA", "state/manifest.ocdbt", "state/d"],
)  # fmt: skip
@pytest.mark.parametrize("damage", ["missing", "half", "list"])
def test_damaged_files_are_one_line_and_the_run_resumes_from_an_older_step(
    run_of_two, file, damage, capsys
):
    step = run_of_two / "checkpoints" / "2"
    path = step / file
    if path.is_dir():
        (path,) = path.iterdir()
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes({"half": data[: len(data) // 2], "list": b"[1]"}[damage])
    with pytest.raises(DamagedCheckpoint, match=f"^{step} is damaged: {file.split('/')[0]}.*$"):
        checkpoint = Checkpoint.find(run_of_two)
        checkpoint.variables(), checkpoint.config, checkpoint.step

    capsys.readouterr()
    restored, position = save_and_restore(run_of_two, make_config())
    assert position == 1
    assert_same(restored, make_state(1, seed=1))
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"{step} is damaged: ")
    assert second == f"set aside as {step}.damaged; 1 steps are repeated"
    assert sorted(p.name for p in step.parent.iterdir()) == ["1", "2.damaged"]
    assert Checkpoint.find(run_of_two).name == "1"


@pytest.mark.parametrize(
    "file, old, new",
    [("config/metadata", '"clip_norm": 0.01', '"clip_norm": 0.07'),
     ("loader/metadata", '"position": 2', '"position": 3'),
     ("validation/metadata", '"best_step": 2', '"best_step": 1'),
     ("metrics/metrics", '"mIoU": 0.2', '"mIoU": 0.9')],
)  # fmt: skip
def test_another_value_in_a_json_file_is_damage(run_of_two, file, old, new):
    path = run_of_two / "checkpoints" / "2" / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    item = file.split("/")[0]
    with pytest.raises(DamagedCheckpoint, match=f"2 is damaged: {item}: it changed since it was"):
        Checkpoint(path.parent.parent).read_json(item)
    assert save_and_restore(run_of_two, make_config())[1] == 1


def test_a_damaged_best_checkpoint_that_is_not_the_newest(run_of_two):
    """It does not stop the run; reading it is an error."""
    checkpoints = Checkpoints(run_of_two, make_config())
    checkpoints.save(make_state(3), 3)
    checkpoints.close()
    flip(data_file(run_of_two / "checkpoints" / "2"))
    assert save_and_restore(run_of_two, make_config())[1] == 3
    with pytest.raises(DamagedCheckpoint, match="2 is damaged: state/params/backbone/fc/kernel"):
        Checkpoint.find(run_of_two).variables()


def test_without_an_older_checkpoint_damage_is_an_error(run_of_two):
    for step in ("1", "2"):
        flip(data_file(run_of_two / "checkpoints" / step))
    for _ in range(2):  # the second start does not train from the beginning either
        with pytest.raises(InputError, match="1 is damaged: .*; the run has no other checkpoint"):
            save_and_restore(run_of_two, make_config())
    folders = sorted(p.name for p in (run_of_two / "checkpoints").iterdir())
    assert folders == ["1", "2.damaged"]


def test_what_is_no_damage_is_not_set_aside(run_of_two, monkeypatch):
    def refuse(*args, **kwargs):
        raise ValueError("RESOURCE_EXHAUSTED: Error opening file: Too many open files")

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", refuse)
    with pytest.raises(OSError, match="state cannot be read: RESOURCE_EXHAUSTED"):
        save_and_restore(run_of_two, make_config())
    assert sorted(p.name for p in (run_of_two / "checkpoints").iterdir()) == ["1", "2"]


# ---- older checkpoints and configurations ----


def test_checkpoints_of_fc75a40_are_read_bit_for_bit(golden_dir):
    """The digests were taken by the code of that commit."""
    expected = json.loads((golden_dir / "fc75a40" / "sha256.json").read_text())
    for name, digests in expected.items():
        old = Checkpoint.find(golden_dir / "fc75a40" / name)
        averaged = digests.pop("averaged", None)
        target = {entry: old.shapes[entry] for entry in digests}
        target = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), target)
        state = old.restore(target)
        assert {entry: sha256(tree) for entry, tree in state.items()} == digests
        if averaged:
            params, batch_stats = old.variables()
            assert sha256({"params": params, "batch_stats": batch_stats}) == averaged
    run = Checkpoint.find(golden_dir / "fc75a40" / "run")
    assert (run.name, run.measure, run.available_weights) == ("2", "mIoU", ("raw", "ema"))
    component = Checkpoint.find(golden_dir / "fc75a40" / "audio_backbone")
    assert component.kept()["extra/a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert component.config.audio_backbone.name == "vggish"


def sha256(tree):
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        digest.update(jax.tree_util.keystr(path, simple=True, separator="/").encode())
        digest.update(str(leaf.dtype).encode() + np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def test_a_configuration_of_fc75a40_has_the_keys_that_models_need_today(golden_dir):
    """A key that is new since then belongs into stored_config.ADDED_KEYS or RENAMED_KEYS."""
    stored = Checkpoint.find(golden_dir / "fc75a40" / "run").config
    today = flat_config(tiny_config())
    for section in ("model", "data"):
        wanted = {key for key in today if key.startswith(f"{section}.")}
        found = {key for key in flat_config(stored) if key.startswith(f"{section}.")}
        assert found == wanted


def test_stored_keys_are_renamed_removed_and_added(monkeypatch):
    monkeypatch.setattr(stored_config, "RENAMED_KEYS", {"model.fusion.init": "model.decoder.init"})
    monkeypatch.setattr(stored_config, "REMOVED_KEYS", (r"model\.old.*",))
    added = {"task": "segment", "model.host": "vct", "model.decoder.init": 7, "model.new.x": 1}
    monkeypatch.setattr(stored_config, "ADDED_KEYS", added)
    old = {"name": "a", "model": {"fusion": {"init": 2.0, "empty": {}}, "older": 1, "b": [1, 2]}}
    new = update_stored(ConfigDict(old))
    assert new.to_dict() == {
        "name": "a",
        "task": "segment",
        "model": {
            "decoder": {"init": 2.0},
            "fusion": {"empty": {}},
            "b": [1, 2],
            "host": "vct",
        },
    }
    assert update_stored(new) == new
    component = {"part": "fusion", "fusion": {"init": 3.0}}
    assert update_stored(ConfigDict(component)).to_dict() == {
        "part": "fusion", "decoder": {"init": 3.0}, "host": "vct",
    }  # fmt: skip
    assert update_stored(ConfigDict({"name": "raft"})).to_dict() == {"name": "raft"}


def test_a_run_of_fc75a40_resumes_under_the_same_configuration(golden_dir):
    run = Checkpoint.find(golden_dir / "fc75a40" / "run")
    check_same_config(run.config, config_of_fc75a40_run(), run.directory)
    run.config.optim.clip_norm = 7.0
    with pytest.raises(InputError, match="optim.clip_norm: 7.0 in the checkpoint"):
        check_same_config(run.config, config_of_fc75a40_run(), run.directory)


def test_what_finds_the_best_step_may_not_change_on_the_way(tmp_path):
    old, new = refer_cma.get_config("tiny"), refer_cma.get_config("tiny")
    new.evaluate.update(batch_size=1, num_pictures=0)
    check_same_config(old, new, tmp_path)
    new.evaluate.presence_threshold = 0.8
    with pytest.raises(InputError, match="presence_threshold: 0.5 in the checkpoint, 0.8 now"):
        check_same_config(old, new, tmp_path)
    old, new = qvh_qd_detr.get_config("tiny"), qvh_qd_detr.get_config("tiny")
    new.evaluate.post_process.half_saliency = not old.evaluate.post_process.half_saliency
    with pytest.raises(InputError, match="evaluate.post_process.half_saliency: "):
        check_same_config(old, new, tmp_path)


def config_of_fc75a40_run():
    """Its frozen parameters keep the state, and the fixture, small."""
    config = tiny_config()
    config.name = "s4_ama_demo"
    config.model.num_queries = 4
    config.model.backbone.update(embed_dim=4, num_heads=(1, 1, 2, 2))
    config.model.audio_backbone.width = 1
    config.model.audio_hidden_dim = 8
    config.model.pixel_decoder.update(ffn_dim=8, num_heads=2)
    config.model.decoder.update(ffn_dim=8, num_heads=2)
    config.optim.frozen = (r"(?!ama/).*",)
    config.train.ema_decay = 0.9
    return config


def test_a_digest_follows_the_keys_that_matter():
    keys = (r"model", r"data\.motion", r"evaluate\.score_size")
    config = make_config()
    before = stored_config.digest(config, keys)
    assert len(before) == 64
    config.data.data_dir = "/elsewhere"  # no part of a number
    config.train.final_splits = list(config.train.final_splits)
    config.model.backbone.depths = [2, 2, 18, 2]  # as JSON gives it back
    plain = stored_config.plain_config(config)
    reverse = ConfigDict(dict(reversed(plain.items())))
    assert stored_config.digest(reverse, keys) == before
    for section, key, value in (
        ("motion", "scale", 3.0), ("motion", "map", "uv"),
    ):  # fmt: skip
        other = config.copy_and_resolve_references()
        other.data[section][key] = value
        assert stored_config.digest(other, keys) != before


def test_keys_that_are_read_before_step_1_may_change(tmp_path):
    checkpoints = Checkpoints(tmp_path, make_config())
    checkpoints.save(make_state(), 3)
    checkpoints.close()
    config = make_config()
    config.init.backbone = "/moved"
    config.train.update(init_from="/moved", init_fresh=("ama/.*",), init_dropped=("x",))
    assert save_and_restore(tmp_path, config)[1] == 3


# ---- kills ----


KILLED = """
    import os, signal, sys
    import numpy as np, jax.numpy as jnp, optax
    from avs_jax.runtime.run_checkpoints import Checkpoints
    from avs_jax.runtime.step import TrainState
    from configs.segment import segment_config

    checkpoints = Checkpoints(sys.argv[1], segment_config())
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
    checkpoints = Checkpoints(tmp_path, segment_config())
    restored, position = checkpoints.restore(as_target(state))
    assert position == 1
    want = np.random.default_rng(1).normal(size=4_000_000).astype(np.float32)
    np.testing.assert_array_equal(restored.params["x"]["kernel"], want)
    checkpoints.save(state, 2)
    checkpoints.close()
    assert Checkpoint.find(tmp_path).name == "2"
    assert not list((tmp_path / "checkpoints").glob("*tmp*"))
