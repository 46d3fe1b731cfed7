"""The rules carry tensors both ways, take nothing on trust and report everything in one message."""

import numpy as np
import pytest

from avs_jax.convert.rules import ConversionError, Rule, apply_rules, invert_rules

RULES = [
    Rule(r"(a|b)\.fc\.weight", r"\1/kernel", "linear"),
    Rule(r"(a|b)\.fc\.bias", r"\1/bias"),
    Rule(r"conv\.weight", "conv/kernel", "conv"),
    Rule(r"proj\.weight", "proj/kernel", "conv1x1"),
    *(Rule(rf"layers\.{i}\.weight", "layers/kernel", "linear", index=i) for i in range(3)),
    Rule(r".*index", None),
]
SHAPES = {
    "a/kernel": (3, 2), "a/bias": (2,), "b/kernel": (3, 2), "b/bias": (2,),
    "conv/kernel": (3, 5, 4, 6), "proj/kernel": (4, 6), "layers/kernel": (3, 4, 5),
}  # fmt: skip


@pytest.fixture
def source():
    rng = np.random.default_rng(0)
    shapes = {
        "a.fc.weight": (2, 3), "a.fc.bias": (2,), "b.fc.weight": (2, 3), "b.fc.bias": (2,),
        "conv.weight": (6, 4, 3, 5), "proj.weight": (6, 4, 1, 1),
        "layers.0.weight": (5, 4), "layers.1.weight": (5, 4), "layers.2.weight": (5, 4),
        "some_index": (7,),
    }  # fmt: skip
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def test_layouts(source):
    tree = apply_rules(source, RULES, SHAPES)
    assert {path: x.shape for path, x in tree.items()} == SHAPES
    np.testing.assert_array_equal(tree["a/kernel"], source["a.fc.weight"].T)
    assert tree["conv/kernel"][1, 2, 3, 4] == source["conv.weight"][4, 3, 1, 2]
    assert tree["proj/kernel"][1, 2] == source["proj.weight"][2, 1, 0, 0]
    np.testing.assert_array_equal(tree["layers/kernel"][2], source["layers.2.weight"].T)


def test_there_and_back_is_the_identity(source):
    back = invert_rules(apply_rules(source, RULES, SHAPES), RULES, list(source))
    assert set(back) == set(source) - {"some_index"}
    for name, array in back.items():
        np.testing.assert_array_equal(array, source[name])


def test_every_disagreement_is_in_one_message(source):
    source["stranger"] = np.zeros(4, np.float32)
    source["a.fc.bias"] = np.zeros(9, np.float32)
    source["proj.weight"] = np.zeros((6, 4, 3, 3), np.float32)
    del source["layers.1.weight"], source["b.fc.bias"]
    with pytest.raises(ConversionError) as caught:
        apply_rules(source, RULES, SHAPES)
    message = str(caught.value)
    for part in (
        "5 problem(s)",
        "stranger (4,) matches no rule",
        "a.fc.bias -> a/bias: shape (9,), expected (2,)",
        "proj.weight -> proj/kernel: shape (6, 4, 3, 3), not a conv1x1 tensor (the kernel is not 1",
        "layers/kernel: layers [1] of 3 are not in the source: layers.1.weight",
        "b/bias (2,): nothing in the source fills it; b.fc.bias would",
    ):
        assert part in message, message


def test_fresh_paths_may_stay_unfilled_and_no_others(source):
    del source["b.fc.bias"], source["b.fc.weight"]
    tree = apply_rules(source, RULES, SHAPES, fresh=[r"b/.*"])
    assert "b/kernel" not in tree and "a/kernel" in tree
    with pytest.raises(ConversionError, match="2 problem"):
        apply_rules(source, RULES, SHAPES)


def test_two_sources_for_one_place(source):
    rules = [Rule(r"twin\.bias", "a/bias"), *RULES]
    source["twin.bias"] = np.zeros(2, np.float32)
    with pytest.raises(ConversionError, match="a/bias: filled twice"):
        apply_rules(source, rules, SHAPES)


def test_more_layers_than_the_model_has(source):
    rules = [Rule(r"layers\.3\.weight", "layers/kernel", "linear", index=3), *RULES]
    source["layers.3.weight"] = np.zeros((5, 4), np.float32)
    with pytest.raises(ConversionError, match="layer 3 of 3"):
        apply_rules(source, rules, SHAPES)


def test_a_place_the_model_lacks(source):
    shapes = {path: shape for path, shape in SHAPES.items() if path != "conv/kernel"}
    with pytest.raises(ConversionError, match="conv/kernel: the model has no such parameter"):
        apply_rules(source, RULES, shapes)


def test_invert_names_what_is_missing(source):
    tree = apply_rules(source, RULES, SHAPES)
    del tree["conv/kernel"]
    with pytest.raises(ConversionError, match="conv/kernel: the tree has no such"):
        invert_rules(tree, RULES, ["conv.weight"])
    with pytest.raises(ConversionError, match="stranger matches no rule"):
        invert_rules(tree, RULES, ["stranger"])
