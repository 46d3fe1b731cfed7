"""Weights out: every format, back to where they came from, and a program that runs without us."""

import json
import pathlib
import re
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
from flax import traverse_util

from avs_jax import predict
from avs_jax.convert.names import module_versions, vct_names
from avs_jax.convert.reader import read_state_dict
from avs_jax.convert.tables import UNUSED_SOURCE_TENSORS
from avs_jax.convert.writer import WRITERS
from avs_jax.inference import stablehlo
from avs_jax.models.backbones.swin import relative_position_index
from avs_jax.programs import convert_weights, export_weights, weight_conversion
from avs_jax.runtime.checkpoint import Checkpoint, save_variables
from configs import parts, s4_vct_pvt_v2, s4_vct_resnet50
from configs.s4_ama import get_config
from configs.segment import segment_config
from tests.convert.test_convert import OTHER, overrides
from tests.programs.test_predict import SMALL as PREDICT
from tests.programs.test_predict import make_predictor
from tests.small import random_variables
from tests.vct_state import entries, state_dict
from tests.weight_files import assert_identical

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = "configs/s4_ama.py:demo"
FORMATS = tuple(WRITERS)


def full_state(config):
    """Everything that VCT with AMA has at `config`, in its order, and no value twice."""
    rng = np.random.default_rng(3)
    state = state_dict(config, (64, 64))
    variables = jax.eval_shape(weight_conversion.make_init(config, (64, 64)))
    stats = traverse_util.flatten_dict(variables[1], sep=".")
    ours = traverse_util.flatten_dict(variables[0]["ama"], sep="/")
    found = {}
    for name in vct_names(config.model):
        if name.endswith("relative_position_index"):
            found[name] = relative_position_index(config.model.backbone.window_size).astype("i8")
        elif name == "criterion.empty_weight":
            found[name] = np.array([1, 1, 0.25], np.float32)  # not what configurations say
        elif name in state:
            found[name] = state[name]
        elif name.endswith("num_batches_tracked"):
            found[name] = np.array(17)
        elif name.endswith("visual_query_block.lambda"):
            found[name] = np.array([0.7], np.float32)
        else:
            shape = ama_shape(name.removeprefix("ama_module."), ours, stats)
            found[name] = rng.random(shape, np.float32)
    return found


def ama_shape(name, ours, stats):
    """Shape in PyTorch's layout of one of AMA's tensors."""
    module, _, leaf = name.rpartition(".")
    module = module.replace(".", "_")
    if leaf.startswith("running_"):
        return stats[f"ama.{module}.{leaf.removeprefix('running_')}"].shape
    if module == "v_proj":
        return ours["q_proj/kernel"].shape
    kernel = ours.get(f"{module}/kernel") if leaf == "weight" else None
    if kernel is None:
        path = "temperature" if not module else f"{module}/{'scale' if leaf == 'weight' else leaf}"
        return ours[path].shape
    shape = kernel.shape
    if module == "flow_encoder_3":
        return (*shape[::-1], 1, 1)
    return shape[::-1] if len(shape) == 2 else (shape[3], shape[2], *shape[:2])


@pytest.fixture(scope="module")
def config():
    config = get_config("demo")
    config.update_from_flattened_dict(OTHER)
    return config


@pytest.fixture(scope="module")
def state(config):
    return full_state(config)


@pytest.fixture(scope="module")
def converted(tmp_path_factory, state):
    """Converted weights of a whole VCT with AMA."""
    folder = tmp_path_factory.mktemp("converted")
    np.savez(folder / "vct.npz", **state)
    flags = ["--source=vct", f"--input={folder}/vct.npz", f"--output={folder}/ours", "--strict"]
    flags += [f"--config={CONFIG}", *overrides(OTHER)]
    assert convert_weights.main(["convert_weights", *flags]) == 0
    return folder / "ours"


def export(checkpoint, file_format, output, *more) -> int:
    flags = [f"--checkpoint={checkpoint}", f"--format={file_format}", f"--output={output}"]
    return export_weights.main(["export_weights", *flags, *more])


# ---- names ----


@pytest.mark.parametrize("dataset, num_prototypes, num_classes", [
    ("s4", 23, 2), ("ms3", 0, 2), ("ss", 71, 71),
])  # fmt: skip
def test_names_are_the_official_ones_in_their_order(dataset, num_prototypes, num_classes):
    config = segment_config()
    config.data.num_prototypes, config.data.num_classes = num_prototypes, num_classes
    assert vct_names(config.model) == list(entries(dataset))


def test_names_of_ama_are_those_of_ama_in_a_list_of_fusions():
    model = get_config("demo").model
    names = vct_names(model)
    assert "ama_module.temperature" in names
    model.fusion = parts.join_fusions(parts.ama(), parts.sync())
    assert vct_names(model) == names


@pytest.mark.parametrize("recipe", [s4_vct_pvt_v2, s4_vct_resnet50])
def test_other_backbones_have_no_names_in_vct(recipe):
    config = recipe.get_config("demo")
    with pytest.raises(ValueError, match=f"no names for .*{config.model.backbone.name}.*'swin'"):
        export_weights.original_state_dict({}, {}, {}, config)


def test_versions_that_the_original_renames_by():
    versions = module_versions(["sem_seg_head.predictor.a.weight", "x.bn.running_mean", "y"])
    second = {name for name, version in versions.items() if version == 2}
    assert second == {"sem_seg_head", "sem_seg_head.predictor", "x.bn"}
    assert set(versions) - second == {"", "sem_seg_head.predictor.a", "x"}


# ---- the state dict ----


@pytest.mark.parametrize("file_format", FORMATS)
def test_convert_then_export_is_the_identity(tmp_path, converted, state, file_format):
    assert export(converted, file_format, tmp_path / "back") == 0
    assert_identical(read_state_dict(tmp_path / "back"), state)


def test_a_run_takes_what_it_lacks_from_converted_weights(tmp_path, config, converted, capsys):
    params, batch_stats = Checkpoint.find(converted).variables()
    trained = jax.tree.map(lambda x: x + 1, params)
    save_variables(tmp_path / "run", {"params": trained, "batch_stats": batch_stats}, config)
    assert Checkpoint.find(tmp_path / "run").kept() == {}
    assert export(tmp_path / "run", "npz", tmp_path / "back.npz") == 1
    err = capsys.readouterr().err
    assert "lacks 6 tensor(s)" in err and "audio_backbone.embeddings.0.weight" in err
    assert "--kept_from" in err and not (tmp_path / "back.npz").exists()

    args = (tmp_path / "run", "npz", tmp_path / "back.npz", f"--kept_from={converted}")
    assert export(*args) == 0
    found = read_state_dict(tmp_path / "back.npz")
    assert list(found) == vct_names(config.model)
    kernel = trained["ama"]["q_proj"]["kernel"]
    np.testing.assert_array_equal(found["ama_module.q_proj.weight"], kernel.T)

    args = (tmp_path / "run", "npz", tmp_path / "less.npz", "--allow_missing")
    assert export(*args) == 0
    assert "left out: audio_backbone.embeddings.0.weight" in capsys.readouterr().out
    less = read_state_dict(tmp_path / "less.npz")
    unused = re.compile(UNUSED_SOURCE_TENSORS)
    left = [n for n in found if not unused.fullmatch(n) or n == "criterion.empty_weight"]
    assert list(less) == left
    weight = config.loss.no_object_weight
    np.testing.assert_array_equal(less["criterion.empty_weight"], np.float32([1, 1, weight]))


def test_a_parameter_without_a_name_is_an_error(config, converted):
    params, batch_stats = Checkpoint.find(converted).variables()
    params["stranger"] = {"kernel": np.zeros((2, 3), np.float32)}
    with pytest.raises(ValueError, match=r"stranger/kernel \(2, 3\): nothing in the source fills"):
        export_weights.original_state_dict(params, batch_stats, {}, config)


def test_mistakes_on_the_command_line(tmp_path, converted, capsys):
    save_variables(tmp_path / "raft", {"params": {"a": np.zeros(1)}}, type(segment_config())())
    (tmp_path / "there").mkdir()
    for args, message in (
        ((converted, "torch", tmp_path / "there"), "exists"),
        ((tmp_path / "none", "torch", tmp_path / "x"), "no checkpoint"),
        ((tmp_path / "raft", "torch", tmp_path / "x"), "not a whole model"),
        ((converted, "onnx", tmp_path / "x"), "stablehlo"),
        ((converted, "orbax", tmp_path / "x", "--allow_missing"), "not read with --format=orbax"),
        ((converted, "torch", tmp_path / "x", "--platforms=cpu"), "not read with --format=torch"),
        ((converted, "stablehlo", tmp_path / "x"), "writes an .npz"),
        ((converted, "stablehlo", tmp_path / "x.npz", "--platforms=abacus"), "choose of"),
    ):
        assert export(*args) == 1, args
        err = capsys.readouterr().err
        assert message in err and "Traceback" not in err, err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["raft", "there"]


# ---- parameters alone, and the program ----


SMALL = {**PREDICT, "model.backbone.depths": (2, 1, 1, 1)}  # also a stage that is scanned


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small model's predictor, and its checkpoint."""
    config = get_config("demo")
    config.update_from_flattened_dict(SMALL)
    folder = tmp_path_factory.mktemp("trained") / "ours"
    save_variables(folder, random_variables(config, (64, 64)), config, {"kept": np.ones(3)})
    return make_predictor(config, folder), folder


def example_arrays(clips=2, frames=2):
    rng = np.random.default_rng(0)
    valid = np.ones((clips, frames), bool)
    valid[-1, -1] = False
    return {
        "images": rng.integers(0, 256, (clips, frames, 64, 64, 3), np.uint8),
        "pre_masks": rng.integers(0, 256, (clips, frames, 64, 64, 3), np.uint8),
        "log_mel": rng.standard_normal((clips, frames, 96, 64), np.float32),
        "motion": rng.random((clips, frames, 64, 64), np.float32),
        "valid": valid,
    }


def test_orbax_holds_the_parameters_alone(tmp_path, trained):
    predictor, checkpoint = trained
    assert export(checkpoint, "orbax", tmp_path / "small") == 0
    alone, whole = Checkpoint.find(tmp_path / "small"), Checkpoint.find(checkpoint)
    assert alone.kept() == {} and whole.kept()
    for mine, theirs in zip(alone.variables(), whole.variables(), strict=True):
        jax.tree.map(np.testing.assert_array_equal, mine, theirs)
    assert alone.config.to_dict() == whole.config.to_dict()
    shapes = stablehlo.input_shapes(predictor.task, B=1, T=1)
    make_predictor(predictor.config, tmp_path / "small").check(
        shapes | {"motion": np.zeros((1, 1, 64, 64, 1))}
    )


# What docs/prediction.md shows, line by line.
TEN_LINES = """
import jax, numpy as np
from jax import export

file = np.load("model.npz")
program = export.deserialize(bytearray(file["program"]))
weights = {name: file[name] for name in file.files if name.startswith("weights/")}
arrays = dict(np.load("in.npz"))  # as for predict --arrays, but complete; file["about"] lists them
arrays.setdefault("valid", np.ones(arrays["images"].shape[:2], bool))
outputs = jax.jit(program.call)(weights, arrays)
masks = np.asarray(outputs["sem_seg"]).argmax(-1)  # class of each pixel, [B, T, S, S]
"""
ALONE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("avs_jax", "flax", "orbax", "ml_collections", "absl"):
            raise ImportError(f"{name} is not here")

sys.meta_path.insert(0, Refuse())
"""


def test_the_docs_show_the_lines():
    lines = textwrap.indent(TEN_LINES.strip(), "    ")
    assert lines in (ROOT / "docs" / "prediction.md").read_text()


@pytest.mark.slow
def test_a_program_runs_with_jax_alone(tmp_path, trained):
    """And agrees with `predict`, at other numbers of clips and frames than it was made with."""
    predictor, checkpoint = trained
    assert export(checkpoint, "stablehlo", tmp_path / "model.npz") == 0
    file = np.load(tmp_path / "model.npz")
    about = json.loads(str(file["about"]))
    assert about["platforms"] == ["cpu", "cuda"]
    assert about["inputs"]["images"] == ["uint8", "B", "T", 64, 64, 3]
    assert about["outputs"]["sem_seg"] == ["float32", "B", "T", "24", "24", "2"]
    arrays = example_arrays()
    np.savez(tmp_path / "in.npz", **arrays)
    quick = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    run = subprocess.run(
        [sys.executable, "-I", "-c", f'{ALONE}{TEN_LINES}np.savez("out.npz", masks, **outputs)'],
        cwd=tmp_path, env=quick, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    found = dict(np.load(tmp_path / "out.npz"))
    predicted, _ = predict.predict_arrays(predictor, arrays)
    np.testing.assert_array_equal(found.pop("arr_0"), predicted["sem_seg"].argmax(-1))
    assert set(found) == set(predicted)
    for name, value in predicted.items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(found[name], value, rtol=0, atol=2e-5 * scale, err_msg=name)


def test_a_checkpoint_of_another_size_is_not_exported(tmp_path, trained, capsys):
    args = (trained[1], "stablehlo", tmp_path / "x.npz", f"--config={CONFIG}", *overrides(SMALL))
    assert export(*args, "--config.data.image_size=96") == 1
    assert "query mixer is made for 256 pixels" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
