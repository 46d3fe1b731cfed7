"""Bicubic positions and the transposed convolution beside PyTorch's own (extra `benchmark`).

Other tests compare the first with the kernel written out, the second with a loop, and both, as
parts of the model, with stored arrays of the original.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax.models.sam2.mask_decoder import Upscaling
from avs_jax.ops.bicubic import bicubic_matrix

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("grid", [7, 14])  # of base+, 14
@pytest.mark.parametrize("size", [256, 224, 128, 96, 64, 56])
def test_bicubic_positions(grid, size):
    coarse = np.random.default_rng(0).standard_normal((1, 3, grid, grid))  # float64
    want = torch.nn.functional.interpolate(
        torch.from_numpy(coarse), size=(size, size), mode="bicubic"
    )
    matrix = bicubic_matrix(grid, size)
    found = matrix @ coarse[0] @ matrix.T
    np.testing.assert_allclose(found, want[0].numpy(), rtol=0, atol=1e-6)


def test_transposed_convolution():
    rng = np.random.default_rng(0)
    x, kernel = (rng.standard_normal(size, np.float32) for size in ((1, 3, 2, 4), (4, 5, 2, 2)))
    bias = rng.standard_normal(5, np.float32)
    arrays = (torch.from_numpy(a) for a in (np.moveaxis(x, -1, 1).copy(), kernel, bias))
    want = torch.nn.functional.conv_transpose2d(*arrays, stride=2).numpy()
    params = {"kernel": jnp.asarray(kernel.transpose(0, 2, 3, 1)), "bias": jnp.asarray(bias)}
    found = Upscaling(5, jnp.float32).apply({"params": params}, jnp.asarray(x))
    np.testing.assert_allclose(np.moveaxis(found, -1, 1), want, rtol=0, atol=1e-5)
