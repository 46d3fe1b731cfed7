"""Meshes, layouts and batches on eight fake devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

from avs_jax.runtime import optim, sharding
from configs.segment import segment_config
from tests import small


def make_mesh(data, fsdp, devices=None):
    config = segment_config()
    config.train.mesh.data, config.train.mesh.fsdp = data, fsdp
    return sharding.make_mesh(config, devices)


@pytest.mark.parametrize("asked,got", [((-1, 1), (8, 1)), ((-1, 4), (2, 4)), ((2, 4), (2, 4))])
def test_mesh_sizes(asked, got):
    mesh = make_mesh(*asked)
    assert (mesh.shape["data"], mesh.shape["fsdp"]) == got
    assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize("asked", [(3, 1), (-1, 3), (4, 4), (0, 8), (-1, 0), (-2, 4)])
def test_a_mesh_that_does_not_fit_names_the_choices(asked):
    with pytest.raises(ValueError, match=r"does not fit 8 device.*\(8, 1\), \(4, 2\), \(2, 4\)"):
        make_mesh(*asked)


def test_large_kernels_and_their_moments_are_sharded_and_the_rest_is_not():
    mesh = make_mesh(-1, 4)
    params = {
        "fc": {"kernel": jnp.zeros((128, 512)), "bias": jnp.zeros(512)},
        "odd": {"kernel": jnp.zeros((511, 129)), "embedding": jnp.zeros((510, 128))},
        "small": {"kernel": jnp.zeros((8, 8))},
    }
    flat = {"fc/kernel": params["fc"]["kernel"], "fc/bias": params["fc"]["bias"]}
    tree = {"params": params, "opt_state": optax.adam(1.0).init(flat)}
    layout = jax.tree.map(lambda x: x.spec, sharding.tree_shardings(tree, mesh))
    assert layout["params"]["fc"]["kernel"] == PartitionSpec(None, "fsdp")
    assert layout["params"]["odd"]["kernel"] == PartitionSpec()
    assert layout["params"]["odd"]["embedding"] == PartitionSpec(None, "fsdp")
    assert layout["params"]["fc"]["bias"] == layout["params"]["small"]["kernel"] == PartitionSpec()
    adam = layout["opt_state"][0]
    assert adam.mu["fc/kernel"] == adam.nu["fc/kernel"] == PartitionSpec(None, "fsdp")
    assert adam.mu["fc/bias"] == adam.count == PartitionSpec()


def test_the_whole_training_state_is_sharded():
    """Moments and average are sharded like their parameter; a device holds a quarter of each."""
    config = segment_config()
    config.train.ema_decay = 0.9
    config.train.mesh.fsdp = 4
    setup = small.train_setup(config)
    state, layout = setup.state, setup.shardings
    of_params = optim.flatten(layout.params)
    for part in (layout.opt_state[1].mu, layout.opt_state[1].nu, layout.ema["params"]):
        assert part == {path: of_params[path] for path in part}

    def num_bytes(shape_of):
        sizes = jax.tree.map(
            lambda x, where: np.prod(shape_of(x, where)) * x.dtype.itemsize, state, layout
        )
        return sum(jax.tree.leaves(sizes))

    whole = num_bytes(lambda x, where: x.shape)
    assert whole > 2e9  # 200 million values, most of them four times
    assert num_bytes(lambda x, where: where.shard_shape(x.shape)) < 1.02 * whole / 4


def test_a_batch_is_split_over_both_axes():
    mesh = make_mesh(2, 4)
    images = np.arange(16 * 3, dtype=np.uint8).reshape(16, 3)
    batch = sharding.put_batch({"images": images}, mesh)
    np.testing.assert_array_equal(batch["images"], images)
    assert {shard.data.shape for shard in batch["images"].addressable_shards} == {(2, 3)}


def test_batches_that_do_not_divide_are_errors():
    mesh = make_mesh(2, 4)
    with pytest.raises(ValueError, match="images: 12 rows cannot be split over the 8 device"):
        sharding.put_batch({"images": np.zeros((12, 3))}, mesh)
    with pytest.raises(ValueError, match=r"train.batch_size=24 .* 8 dev.* x 2 .*\[16, 32\]"):
        sharding.check_batch_size("config.train.batch_size", 24, mesh, 2)
    sharding.check_batch_size("config.train.batch_size", 16, mesh, 2)
