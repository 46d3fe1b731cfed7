"""Comparison with the golden arrays of the VCT files, and parameters by their rule."""

import json
from collections.abc import Sequence

import numpy as np
from flax import traverse_util

from avs_jax.convert.rules import Rule, apply_rules, invert_rules
from tests.golden.weights import vct_value


def assert_golden(golden, name: str, value, floors: float = 10.0) -> None:
    """`value`, in the torch layout, agrees with the stored tensor or sample of `name`.

    The tolerance is `floors` times the float32 noise of the original where the file states it,
    else 1e-4 of the tensor's largest value.
    """
    value = np.asarray(value)
    if f"{name}/sample" in golden:
        assert value.shape == tuple(golden[f"{name}/shape"]), name
        expected = golden[f"{name}/sample"]
        mean = golden[f"{name}/stats"][0]
        value_mean, value = value.mean(dtype=np.float64), value.reshape(-1)
        value = value[:: int(golden[f"{name}/stride"])]
    else:
        assert value.shape == golden[name].shape, name
        expected = golden[name]
        mean, value_mean = expected.mean(dtype=np.float64), value.mean(dtype=np.float64)
    noise = json.loads(str(golden["meta/noise_json"])) if "meta/noise_json" in golden else {}
    floor = noise.get(name, [0.0])[0] * floors
    tolerance = floor or 1e-4 * float(np.abs(expected).max())
    np.testing.assert_allclose(value, expected, rtol=0, atol=tolerance, err_msg=name)
    assert abs(value_mean - mean) <= tolerance, (name, value_mean, mean)


def shapes_of(tree) -> dict[str, tuple[int, ...]]:
    """Path -> shape of the leaves of a tree of arrays or of ShapeDtypeStructs."""
    return {k: tuple(v.shape) for k, v in traverse_util.flatten_dict(tree, sep="/").items()}


def vct_params(tree, rules: Sequence[Rule], names: Sequence[str]):
    """A tree shaped like `tree`, filled with the weights that the rule gives `names`."""
    shapes = shapes_of(tree)
    blank = {path: np.zeros(shape, np.int8) for path, shape in shapes.items()}
    theirs = {name: value.shape for name, value in invert_rules(blank, rules, names).items()}
    state = {name: vct_value(name, shape) for name, shape in theirs.items()}
    return traverse_util.unflatten_dict(apply_rules(state, rules, shapes), sep="/")
