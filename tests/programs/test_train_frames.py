"""Training on supervised frames only has the loss and the gradients of training on all frames.

Frames meet nowhere in the model but in the batch statistics of AMA and BRM, which come from the
frames that are there; with the others marked as not valid the two ways agree there too.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax.runtime import optim
from avs_jax.tasks import make_task
from tests import small


@pytest.mark.slow
def test_supervised_frames_give_the_loss_and_gradients_of_all():
    config = small.tiny_config("ama", "auxiliary")
    config.model.backbone.drop_path_rate = 0.2
    task = make_task(config)
    streams = task.rng_streams
    variables = small.random_variables(config, (small.SIDE, small.SIDE)).values()
    keys = dict(zip(streams, jax.random.split(jax.random.key(3), len(streams)), strict=True))

    def loss(params, batch_stats, batch):
        variables = {"params": params, "batch_stats": batch_stats}
        outputs, _ = task.model.apply(
            variables, task.inputs(batch), train=True, rngs=keys, mutable=["batch_stats"]
        )
        return task.loss(outputs, batch, jax.random.key(5), None)[0]

    results = {}
    for frames in ("supervised", "all"):
        config.data.train_frames = frames
        batch = {name: value[:2] for name, value in small.train_batch(config).items()}
        batch["valid"] = batch["valid"] & batch["supervised"]
        results[frames] = jax.jit(jax.value_and_grad(loss))(*variables, batch)
        assert batch["images"].shape[1] == {"supervised": 1, "all": 5}[frames]

    (few_loss, few), (all_loss, every) = results["supervised"], results["all"]
    np.testing.assert_allclose(few_loss, all_loss, rtol=1e-6)
    few, every = optim.flatten(few), optim.flatten(every)
    size = jnp.sqrt(sum(jnp.square(x).sum() for x in every.values()))
    for path, value in every.items():
        error = jnp.linalg.norm((few[path] - value).ravel())
        assert error <= 1e-4 * jnp.linalg.norm(value.ravel()) + 1e-6 * size, path
    for path in ("ama/q_proj/kernel", "ama/flow_encoder_0/kernel", "ama/temperature"):
        # S4 trains on first frames only, and AMA must learn from them.
        assert jnp.linalg.norm(every[path].ravel()) > 1e-6 * size, path
    assert jnp.linalg.norm(every["brm/conv/kernel"].ravel()) > 1e-6 * size
