"""Our side of scripts/benchmark.py for task track."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from benchmark_jax import compiled_case, normal
from benchmark_worker import Case, serve
from measure_step import random_values
from ml_collections import ConfigDict

from avs_jax.models import build_model
from avs_jax.models.sam2.bank import Memory, remember, remember_prompted
from avs_jax.models.sam2.model import SAM2
from avs_jax.models.sam2.neck import ImageFeatures
from avs_jax.ops.sampling import resize_bilinear


def make_model(config: ConfigDict) -> tuple:
    """(method, *args) -> result, of the parameters; and the parameters."""
    model = build_model(config.model, SAM2)
    images = np.zeros((1, 64, 64, 3), np.float32)
    init = functools.partial(model.init, jax.random.key(0), images, method="initialize")
    params = jax.device_put(random_values(jax.eval_shape(init)["params"]))

    def call(params, method, *args):
        return model.apply({"params": params}, *args, method=method)

    return call, params


def random_maps(config: ConfigDict, frames: int) -> ImageFeatures:
    side, width = config.data.image_size, config.model.width
    sizes = ((width // 8, 4), (width // 4, 8), (width, 16))
    return ImageFeatures(*(normal(frames, side // s, side // s, c) for c, s in sizes))


def encoder(config: ConfigDict, mode: str, values: flags.FlagValues) -> Case:
    """Images to the three maps."""
    call, params = make_model(config)
    side = config.data.image_size
    images = normal(values.frames, side, side, 3)

    def encode(params, images):
        return call(params, "encode_images", images)

    return compiled_case(encode, (params, images), values.frames)


def decoder(config: ConfigDict, mode: str, values: flags.FlagValues) -> Case:
    """Maps and a click to three masks, also at full size."""
    call, params = make_model(config)
    side, count = config.data.image_size, values.frames
    points = jnp.full((count, 2, 2), side / 2)
    labels = jnp.broadcast_to(jnp.array([[1, -1]]), (count, 2))
    prompt = points, labels, jnp.zeros((count, side // 4, side // 4)), jnp.zeros(count, bool)

    def decode(params, features, *prompt):
        found = call(params, "decode", features, *prompt)
        masks = resize_bilinear(found.masks[..., 1:], (side, side))
        return found._replace(masks=masks, image=None)

    return compiled_case(decode, (params, random_maps(config, count), *prompt), count)


def memory(config: ConfigDict, mode: str, values: flags.FlagValues) -> Case:
    """A tracked frame behind a full memory: attention, decoder, memory encoder."""
    call, params = make_model(config)
    model, cells = config.model, config.data.image_size // 16
    kept = Memory(normal(1, cells, cells, model.memory_dim), normal(1, model.width))
    new = jnp.ones(1, bool)
    bank = build_model(model, SAM2).apply({"params": params}, kept, 1, method="new_bank")
    bank = remember_prompted(bank, kept, jnp.int32(0), new)
    for number in range(1, model.num_maps):
        bank = remember(bank, kept, jnp.int32(number), new)
    numbers = jnp.int32(model.num_maps), jnp.int32(model.num_maps + 1)
    return compiled_case(
        lambda params, *args: call(params, "follow", *args),
        (params, random_maps(config, 1), bank, *numbers),
        1,
    )


BUILDERS = {"sam2_encoder": encoder, "sam2_decoder": decoder, "sam2_memory": memory}

if __name__ == "__main__":
    sys.exit(serve(sys.argv, BUILDERS, __doc__))
