"""Our side of scripts/benchmark.py."""

import sys
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from benchmark_worker import Case, serve, sizes
from measure_step import random_batch, random_values
from ml_collections import ConfigDict

from avs_jax.losses.criterion import compute_losses
from avs_jax.models.backbones.swin import Swin
from avs_jax.models.decoders.pixel_decoder import DeformableTransformer
from avs_jax.models.decoders.vct_decoder import VCTDecoder
from avs_jax.models.flow.raft import RAFT
from avs_jax.runtime import optim
from avs_jax.runtime.evaluation import apply_model
from avs_jax.runtime.memory import StepBytes
from avs_jax.runtime.step import init_state, init_variables, make_train_step
from avs_jax.tasks import make_task


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))


def compiled_case(function: Callable, arguments: tuple, frames: int) -> Case:
    """A case that calls a compiled function on the same arguments."""
    compiled = jax.jit(function).lower(*arguments).compile()
    return Case(
        run=lambda: jax.block_until_ready(compiled(*arguments)),
        count_bytes=lambda: bytes_of(compiled),
        device=jax.devices()[0].device_kind,
        frames=frames,
    )


def bytes_of(compiled) -> int:
    """Arguments, temporaries and output of a compiled function; donated bytes count once."""
    return StepBytes.of(compiled).total


def module_case(module, inputs: tuple, mode: str, frames: int, select: Callable, **options) -> Case:
    """Forward, or forward and the parameter gradient of a mean square."""
    shapes = jax.eval_shape(partial(module.init, **options), jax.random.key(0), *inputs)
    params = jax.device_put(random_values(shapes["params"]))

    def forward(params, *inputs):
        return select(module.apply({"params": params}, *inputs, **options))

    def train(params, *inputs):
        def loss(params):
            out = forward(params, *inputs)
            return sum(jnp.square(x).mean() for x in jax.tree.leaves(out)), out

        return jax.value_and_grad(loss, has_aux=True)(params)

    return compiled_case({"forward": forward, "train": train}[mode], (params, *inputs), frames)


def swin(config: ConfigDict, mode: str, values: flags.FlagValues) -> Case:
    """The backbone alone, without drop path."""
    fields = {k: v for k, v in config.model.backbone.items() if k != "name"}
    side = config.data.image_size
    images = normal(values.frames, side, side, 3)
    return module_case(Swin(**fields), (images,), mode, values.frames, lambda x: x)


def encoder(config: ConfigDict, mode: str, values: flags.FlagValues) -> Case:
    """Deformable attention over strides 32, 16 and 8."""
    sides = [side for side, _ in sizes(config)[:0:-1]]
    features = [normal(values.frames, s, s, config.model.hidden_dim) for s in sides]
    module = DeformableTransformer(config.model.pixel_decoder)
    return module_case(module, (features,), mode, values.frames, lambda x: x[0])


def decoder(config: ConfigDict, mode: str, values: flags.FlagValues) -> Case:
    """PPQG and the transformer decoder with every prediction."""
    model, sides = config.model, [side for side, _ in sizes(config)]
    maps = [normal(values.frames, s, s, model.hidden_dim) for s in sides]
    audio = normal(values.frames, 6, 4, model.hidden_dim)
    module = VCTDecoder(
        model.num_classes, model.num_prototypes, model.num_queries, **model.decoder,
        dtype=jnp.dtype(model.dtype),
    )  # fmt: skip
    inputs = (maps[:0:-1], maps[0], audio)
    return module_case(module, inputs, mode, values.frames, lambda x: x[0]["predictions"])


def criterion(config: ConfigDict, mode: str, values: flags.FlagValues) -> Case:
    """Matching and losses of every prediction, and their gradient."""
    model, side = config.model, config.data.image_size
    config.train.batch_size = values.frames
    batch = {k: v[:, :1] for k, v in random_batch(config).items()}
    batch.pop("proto_valid"), batch.pop("proto_target")
    count = model.decoder.num_layers + 1

    def prediction():
        return {
            "pred_logits": normal(values.frames, 1, model.num_queries, model.num_classes + 1),
            "pred_masks": normal(values.frames, 1, side // 4, side // 4, model.num_queries),
        }

    predictions = [prediction() for _ in range(count)]

    def train(predictions, batch):
        def loss(predictions):
            outputs = predictions[0] | {"aux_outputs": predictions[1:]}
            return compute_losses(outputs, batch, jax.random.key(0), loss_config=config.loss)

        return jax.value_and_grad(loss, has_aux=True)(predictions)

    return compiled_case(train, (predictions, jax.device_put(batch)), values.frames)


def clip(config: ConfigDict, mode: str, values: flags.FlagValues) -> Case:
    """The whole model on all frames of one clip."""
    config.train.batch_size, config.data.train_frames = 1, "all"
    config.data.num_supervised = config.data.num_frames
    task, host = make_task(config), random_batch(config)
    inputs = task.inputs(host)
    shapes = jax.eval_shape(partial(init_variables, task.model, seed=0), inputs)
    variables = jax.device_put(tuple(random_values(tree) for tree in shapes))
    inputs = {name: jnp.asarray(value) for name, value in inputs.items()}
    forward = partial(apply_model, task)
    return compiled_case(forward, (*variables, inputs), host["valid"].size)


def step(config: ConfigDict, mode: str, values: flags.FlagValues) -> Case:
    """The training step with a donated state, as in training."""
    config.train.batch_size = values.clips
    task, host = make_task(config), random_batch(config)
    params, batch_stats = jax.eval_shape(
        partial(init_variables, task.model, seed=0), task.inputs(host)
    )
    optimizer, schedule = optim.make_optimizer(params, config)
    train_step = make_train_step(task.model, task.loss, optimizer, schedule, task, config)
    new_state = partial(init_state, optimizer=optimizer, config=config)
    state = jax.jit(new_state)(random_values(params), random_values(batch_stats))
    batch, seed = jax.device_put((host, np.uint32(config.seed)))
    compiled = train_step.lower(state, batch, seed).compile()
    held = [state]

    def run():
        held[0], metrics = compiled(held[0], batch, seed)
        jax.block_until_ready((held[0], metrics))

    return Case(run, lambda: bytes_of(compiled), jax.devices()[0].device_kind, host["valid"].size)


def raft(
    variant: str,
    config: ConfigDict,
    mode: str,
    values: flags.FlagValues,
    correlation: str = "all_pairs",
) -> Case:
    """Flow of pairs of 384 x 384 px."""
    module = RAFT(variant, correlation)
    first, second = (128 + 50 * normal(values.frames, 384, 384, 3) for _ in range(2))
    shapes = jax.eval_shape(module.init, jax.random.key(0), first, second)
    variables = jax.device_put({k: random_values(v) for k, v in shapes.items()})

    def forward(variables, first, second):
        return module.apply(variables, first, second)[0]

    return compiled_case(forward, (variables, first, second), values.frames)


BUILDERS = {
    "swin": swin,
    "encoder": encoder,
    "decoder": decoder,
    "criterion": criterion,
    "clip": clip,
    "step": step,
    "raft_large": partial(raft, "raft_large"),
    "raft_large_rows": partial(raft, "raft_large", correlation="on_demand"),
    "raft_small": partial(raft, "raft_small"),
}

if __name__ == "__main__":
    sys.exit(serve(sys.argv, BUILDERS, __doc__))
