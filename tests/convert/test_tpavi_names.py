"""The state dict of the baselines: published names both ways, nothing left over, in order."""

import re

import jax
import numpy as np
import pytest

from avs_jax.convert.rules import ConversionError, apply_rules, invert_rules
from avs_jax.convert.tables import vggish_rules
from avs_jax.convert.tpavi_names import UNUSED_SOURCE_TENSORS, tpavi_names, tpavi_rules
from avs_jax.models.backbones.vggish import VGGish
from avs_jax.models.tpavi import TPAVI
from tests.backbone_files import entries as file_entries
from tests.golden.compare import shapes_of
from tests.tpavi_golden import entries, model_config, random_batch

VARIANTS = [(b, s) for b in ("resnet50", "pvt") for s in ("s4", "ms3", "avss")]


def shapes_in_tree(config):
    """Path -> shape of a model's variables, running statistics under batch_stats/."""
    model = TPAVI(**config)
    tree = jax.eval_shape(lambda: model.init(jax.random.key(0), random_batch()))
    stats = shapes_of(tree["batch_stats"])
    return shapes_of(tree["params"]) | {f"batch_stats/{path}": s for path, s in stats.items()}


def blank(found):
    """A state dict of zeros that take no memory."""
    return {name: np.broadcast_to(np.zeros((), dtype), s) for name, (s, dtype) in found.items()}


@pytest.mark.parametrize(("backbone", "setting"), VARIANTS)
def test_published_names_are_taken_whole_and_given_back(backbone, setting):
    config = model_config(backbone, setting)
    found = entries(backbone, setting)
    assert tpavi_names(config) == list(found)
    rules, state = tpavi_rules(config), blank(found)
    shapes = {p: s for p, s in shapes_in_tree(config).items() if not p.startswith("audio_")}
    tree = apply_rules(state, rules, shapes)
    assert tree.keys() == shapes.keys()
    back = invert_rules(tree, rules, tpavi_names(config))
    aside = {name for name in found if re.fullmatch(UNUSED_SOURCE_TENSORS, name)}
    assert back.keys() == found.keys() - aside
    assert all(back[name].shape == found[name][0] for name in back)


@pytest.mark.parametrize("mode", ["gaussian", "embedded", "dot", "concatenate"])
def test_import_then_export_is_the_identity(mode):
    backbone = {"name": "resnet50", "depths": (1, 1, 1, 1), "width": 4}
    config = model_config(backbone, tpavi_mode=mode, tpavi_stages=(1, 3), hidden_dim=8)
    rules, shapes = tpavi_rules(config), shapes_in_tree(config)
    shapes = {path: shape for path, shape in shapes.items() if not path.startswith("audio_")}
    rng, tree = np.random.default_rng(0), {}
    for path, shape in shapes.items():
        tree[path] = rng.standard_normal(shape).astype(np.float32)
    state = invert_rules(tree, rules, tpavi_names(config))
    again = apply_rules(state, rules, shapes, dtype=np.float32)
    assert again.keys() == tree.keys()
    jax.tree.map(np.testing.assert_array_equal, again, tree)


def test_vggish_is_taken_whole_from_its_own_file():
    model = VGGish(embedding=(4096, 4096, 128))
    tree = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 96, 64), np.float32))
    shapes = shapes_of(tree["params"])
    found = file_entries("vggish") | file_entries("vggish_pca")
    flat = apply_rules(blank(found), vggish_rules("", "", has_embedding=True), shapes)
    assert flat.keys() == shapes.keys()
    names = list(file_entries("vggish"))
    back = invert_rules(flat, vggish_rules("", "", has_embedding=True), names)
    assert {name: x.shape for name, x in back.items()} == {n: found[n][0] for n in names}


def test_a_tensor_too_many_or_too_few_is_named():
    config = model_config()
    state = blank(entries("resnet50", "ms3"))
    shapes = {p: s for p, s in shapes_in_tree(config).items() if not p.startswith("audio_")}
    del state["tpavi_b2.theta.bias"]
    state["tpavi_b2.theta.scale"] = np.zeros(1)
    with pytest.raises(ConversionError) as error:
        apply_rules(state, tpavi_rules(config), shapes)
    assert "tpavi_b2/theta/bias" in str(error.value) and "tpavi_b2.theta.scale" in str(error.value)
    for part in (tpavi_rules, tpavi_names):
        with pytest.raises(ConversionError, match="AVSBench has no names for .*'swin'"):
            part(config | {"backbone": {"name": "swin"}})
