"""Whole models other than VCT, through both programs: what comes in goes out, bit for bit."""

import jax
import numpy as np
import pytest
from flax import traverse_util

from avs_jax.convert import ground_names, tpavi_names
from avs_jax.convert.reader import read_state_dict
from avs_jax.convert.rules import invert_rules
from avs_jax.programs import convert_weights, export_weights, weight_conversion
from avs_jax.runtime.checkpoint import Checkpoint
from configs import qvh_custom, qvh_qd_detr, s4_tpavi_resnet50

CASES = {
    "configs/s4_tpavi_resnet50.py:tiny": (
        "tpavi",
        s4_tpavi_resnet50,
        tpavi_names.tpavi_names,
        tpavi_names.tpavi_rules,
    ),
    "configs/qvh_qd_detr.py:tiny": (
        "qd_detr",
        qvh_qd_detr,
        ground_names.qd_detr_names,
        lambda _: ground_names.qd_detr_rules(),
    ),
    "configs/qvh_custom.py:tiny": (
        "qd_detr",
        qvh_custom,
        ground_names.qd_detr_names,
        lambda _: ground_names.qd_detr_rules(),
    ),
}


def random_like(init):
    """Random (params, batch_stats), every leaf another."""
    rng = np.random.default_rng(3)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), jax.eval_shape(init))


def make_state(recipe, names, rules):
    """A state dict of the tiny model, with small stand-ins for tensors that no parameter uses."""
    config = recipe.get_config("tiny")
    params, stats = random_like(weight_conversion.make_init(config))
    tree = traverse_util.flatten_dict(params, sep="/")
    tree |= {f"batch_stats/{k}": v for k, v in traverse_util.flatten_dict(stats, sep="/").items()}
    names = names(config.model)
    found = invert_rules(tree, rules(config.model), names)
    return {name: found.get(name, np.full(2, 0.5, np.float32)) for name in names}


@pytest.fixture(scope="module", params=list(CASES))
def converted(request, tmp_path_factory):
    source, *case = CASES[request.param]
    state, folder = make_state(*case), tmp_path_factory.mktemp("models")
    np.savez(folder / "model.npz", **state)
    flags = [f"--source={source}", f"--input={folder}/model.npz", f"--output={folder}/ours"]
    assert convert_weights.main(["convert_weights", *flags, f"--config={request.param}"]) == 0
    return state, folder / "ours"


def test_what_comes_in_goes_out(converted, tmp_path):
    state, folder = converted
    flags = [f"--checkpoint={folder}", "--format=npz", f"--output={tmp_path / 'out.npz'}"]
    assert export_weights.main(["export_weights", *flags]) == 0
    found = read_state_dict(tmp_path / "out.npz")
    assert list(found) == list(state)
    for name, array in state.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_the_sound_of_tpavi_comes_from_its_own_file(tmp_path, capsys):
    config = s4_tpavi_resnet50.get_config("tiny")
    vggish, whole = tmp_path / "vggish", tmp_path / "whole"
    params, _ = random_like(weight_conversion.make_init(config))
    tree = traverse_util.flatten_dict(params["audio_backbone"], sep="/")
    layers = sorted({path.split("/")[0].replace("_", ".") for path in tree})
    names = [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    rules = weight_conversion.vggish_rules("", "", has_embedding=True)
    np.savez(tmp_path / "vggish.npz", **invert_rules(tree, rules, names))
    np.savez(tmp_path / "model.npz", **make_state(*CASES["configs/s4_tpavi_resnet50.py:tiny"][1:]))

    def convert(source, output, *more):
        flags = [f"--source={source}", f"--output={output}", *more]
        flags += ["--config=configs/s4_tpavi_resnet50.py:tiny"]
        return convert_weights.main(["convert_weights", *flags])

    assert convert("vggish", vggish, f"--input={tmp_path}/vggish.npz") == 0
    model = f"--input={tmp_path}/model.npz"
    assert convert("tpavi", whole, model, "--strict") == 1
    assert "audio_backbone" in capsys.readouterr().err and not whole.exists()
    sound = f"--config.init.audio_backbone={vggish}"
    assert convert("tpavi", whole, model, "--strict", sound) == 0
    found = traverse_util.flatten_dict(
        Checkpoint.find(whole).variables()[0]["audio_backbone"], sep="/"
    )
    assert found.keys() == tree.keys()
    for path, array in tree.items():
        np.testing.assert_array_equal(found[path], array, err_msg=path)


def test_a_configuration_of_another_model_is_named(tmp_path, capsys):
    np.savez(tmp_path / "w.npz", a=np.zeros(1, np.float32))
    flags = ["--source=qd_detr", f"--input={tmp_path}/w.npz", f"--output={tmp_path}/ours"]
    assert convert_weights.main(["convert_weights", *flags, "--config=configs/s4_vct.py"]) == 1
    assert "task 'segment', host 'vct', whose files are vct" in capsys.readouterr().err
