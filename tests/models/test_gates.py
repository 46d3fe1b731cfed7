"""The channel gate: numbers of the original."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax.convert.tables import gate_rules
from avs_jax.models.backbones.stages import FEATURE_LEVELS
from avs_jax.models.fusion.gates import ChannelGate
from tests.golden.compare import assert_golden, vct_params
from tests.models.test_swin import channels_first, checkpoint_entries, golden_s4, tiny_features


def abstract_params(channels: int):
    x = jnp.zeros((1, 1, 1, channels))
    return jax.eval_shape(ChannelGate().init, jax.random.key(0), x)["params"]


def test_gates_agree_with_the_original():
    """The fused features are those of the model: test_avs.py compares them."""
    golden = golden_s4()
    masks, _ = tiny_features("pre_sam_backbone")
    tree = {f"scale_factor_module_{i}": abstract_params(32 * 2**i) for i in range(4)}
    names = [name for name in checkpoint_entries() if name.startswith("scale_factor_module.")]
    rules = gate_rules("scale_factor_module", "scale_factor_module")
    params = vct_params(tree, rules, names)
    for i, level in enumerate(FEATURE_LEVELS):
        variables = {"params": params[f"scale_factor_module_{i}"]}
        gate = ChannelGate().apply(variables, masks[level])
        assert_golden(golden, f"scale_factor/{i}", channels_first(gate))


def test_the_published_width_has_the_published_number_of_parameters():
    sizes = [leaf.size for i in range(4) for leaf in jax.tree.leaves(abstract_params(128 * 2**i))]
    assert sum(sizes) == 176_120


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_narrow_maps_keep_one_hidden_channel(dtype):
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, 8), dtype)
    gate, variables = ChannelGate().init_with_output(jax.random.key(1), x)
    assert variables["params"]["fc1"]["kernel"].shape == (8, 1)
    assert gate.shape == (2, 1, 1, 8) and gate.dtype == jnp.dtype(dtype)
    assert np.all((gate > 0) & (gate < 1))
