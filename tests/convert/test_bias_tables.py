"""Tables of relative position biases at another window size: PyTorch's bicubic interpolation."""

import numpy as np
import pytest

from avs_jax.convert.bias_tables import SUFFIX, resize_bias_tables
from avs_jax.ops.bicubic import bicubic_matrix

# torch.nn.functional.interpolate(x, size, mode="bicubic") of x = [0, 1, 4, 9, 16] in a row
ROW = (0.0, 1.0, 4.0, 9.0, 16.0)
KNOWN = {
    3: (0.148149, 4.000000, 14.074071),
    4: (0.073730, 1.861328, 6.626953, 15.319824),
    7: (-0.078717, 0.265307, 1.682217, 4.000000, 7.046647, 12.463553, 16.551027),
    9: (
        -0.100823,
        0.148147,
        0.710563,
        2.004118,
        4.000000,
        6.338829,
        9.972572,
        14.074075,
        16.705765,
    ),
}


@pytest.mark.parametrize("size", sorted(KNOWN))
def test_rows_that_pytorch_resized(size):
    np.testing.assert_allclose(bicubic_matrix(5, size) @ ROW, KNOWN[size], rtol=0, atol=2e-5)


def test_against_torch_itself():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    for window, wanted in ((4, 7), (7, 12), (12, 7), (3, 2)):
        side, new = 2 * window - 1, 2 * wanted - 1
        table = rng.standard_normal((side * side, 3)).astype(np.float32)
        picture = torch.from_numpy(table.T.copy()).view(1, 3, side, side)
        theirs = torch.nn.functional.interpolate(picture, size=(new, new), mode="bicubic")
        ours = resize_bias_tables({f"x.{SUFFIX}": table}, wanted)[0][f"x.{SUFFIX}"]
        np.testing.assert_allclose(ours, theirs.view(3, -1).T.numpy(), rtol=0, atol=1e-5)


def test_only_tables_of_another_window_change():
    rng = np.random.default_rng(0)
    state = {
        f"a.{SUFFIX}": rng.standard_normal((49, 3)).astype(np.float32),  # window 4
        f"b.{SUFFIX}": np.full((9, 2), 0.5, np.float16),  # window 2
        f"c.{SUFFIX}": rng.standard_normal((25, 1)),  # window 3, the one wanted
        f"d.{SUFFIX}": np.zeros((48, 3)),  # no window's
        f"e.{SUFFIX}": np.zeros((36, 3)),  # an even side, no window's either
        "f.weight": np.zeros((49, 3)),
    }
    result, resized = resize_bias_tables(state, 3)
    assert resized == {4: 1, 2: 1} and list(result) == list(state)
    assert result[f"a.{SUFFIX}"].shape == (25, 3)
    assert result[f"a.{SUFFIX}"].dtype == np.float32
    np.testing.assert_array_equal(result[f"b.{SUFFIX}"], np.full((25, 2), 0.5, np.float16))
    for name in list(state)[2:]:
        assert result[name] is state[name]


def test_rows_and_columns_keep_their_places():
    """A table that depends on one axis alone still does."""
    side = np.arange(7.0)
    for axis in (0, 1):
        picture = np.broadcast_to(np.expand_dims(side, 1 - axis), (7, 7))
        table = np.ascontiguousarray(picture).reshape(49, 1)
        resized = resize_bias_tables({SUFFIX: table}, 5)[0][SUFFIX].reshape(9, 9)
        expected = np.broadcast_to(np.expand_dims(bicubic_matrix(7, 9) @ side, 1 - axis), (9, 9))
        np.testing.assert_allclose(resized, expected, atol=1e-6)
