"""The goldens of alignment, retrieval and space-time: arrays, their noise, weights by their rule.

tests/golden/cases/ holds arrays measured with Hugging Face's CLIP and AST, the original
TimeSformer, and brute-force loops; per file, X_meta.json has the names of the state dicts.
"""

import functools
import json
import pathlib

import numpy as np

from tests.golden.weights import avs_value

FOLDER = pathlib.Path(__file__).resolve().parent / "golden" / "cases"


@functools.cache
def arrays(name):
    """The arrays of golden_{name}.npz."""
    return dict(np.load(FOLDER / f"golden_{name}.npz"))


@functools.cache
def meta(name):
    return json.loads((FOLDER / f"golden_{name}_meta.json").read_text())


def assert_golden(name, key, value, index=...):
    """`value` agrees with an array of golden_{name}.npz within ten times its noise."""
    expected, value = arrays(name)[key][index], np.asarray(value)
    assert value.shape == expected.shape, key
    noise, largest = meta(name)["noise"].get(key, (0.0, np.abs(expected).max()))
    tolerance = 10 * noise + 1e-6 * largest
    np.testing.assert_allclose(value, expected, rtol=0, atol=tolerance, err_msg=key)


def state_dict(name, model):
    """The golden weights of a model, by name."""
    return {
        entry: np.float32(arrays(name)[entry])
        if entry.rsplit(".", 1)[-1] == "logit_scale"
        else avs_value(entry, shape)
        for entry, shape in meta(name)["models"][model]["names"]
    }
