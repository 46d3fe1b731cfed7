"""The smallest whole model, in-memory clips for it, and batches: for tests of what is around it."""

import jax
import numpy as np

from avs_jax.data.clip import ClipRows
from avs_jax.data.pipeline import TrainBatches
from avs_jax.programs.weight_conversion import make_init
from avs_jax.runtime import optim, sharding
from avs_jax.runtime.setup import TrainSetup, make_train_setup
from avs_jax.tasks import make_task
from configs import parts, s4_ama, s4_vct

SIDE = 64


def small_config(fusion: str = "ama", refiner: str = "none"):
    """The `:tiny` variant of S4 with AMA, or of S4 without a fusion; batches of 8 clips."""
    config = {"ama": s4_ama, "none": s4_vct}[fusion].get_config("tiny")
    if refiner != "none":
        config.model.refiner = parts.refiner(refiner)
    return config


def tiny_config(fusion: str = "ama", refiner: str = "none"):
    """`small_config` without the pre-mask branch, with one block per stage: quick to compile."""
    config = small_config(fusion, refiner)
    config.data.pre_masks = config.model.pre_masks = False
    config.model.backbone.depths = (1, 1, 1, 1)
    config.model.pixel_decoder.num_layers = config.model.decoder.num_layers = 1
    return config


def records(count: int, seed: int = 0) -> list[dict]:
    """Raw records of moving squares; the first frame has a mask."""
    rng = np.random.default_rng(seed)
    return [_record(rng, f"clip{seed}_{i}", i) for i in range(count)]


def _record(rng, clip_id, index):
    frames = rng.integers(0, 255, (5, SIDE, SIDE, 3), dtype=np.uint8)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[8 + index : 40 + index, 10:30] = 1
    return {
        "clip_id": clip_id,
        "category": f"kind{index % 3}",
        "category_label": index % 3 + 1,
        "frames": list(frames),
        "pre_masks": list(frames[:, ::-1]),
        "masks": [mask],
        "mask_index": [0],
        "waveform": rng.integers(-3000, 3000, 5 * 16_000, dtype=np.int16),
        "sample_rate": 16_000,
        "flow": np.zeros((0,), np.float16),
    }


def train_batch(config, step: int = 0) -> dict:
    """The batch of one step."""
    batches = TrainBatches(records(8), ClipRows(config), config.train.batch_size, config.seed)
    return batches[step]


def train_setup(config, devices=None) -> TrainSetup:
    """The setup of a training under a configuration, as in `train`."""
    task, mesh = make_task(config), sharding.make_mesh(config, devices)
    return make_train_setup(task.model, task.loss, optim.make_optimizer, task, config, mesh)


def random_variables(config, size: tuple[int, int], seed: int = 5) -> dict[str, dict]:
    """{"params", "batch_stats"} of a configuration's model, drawn without compiling anything."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name in ("scale", "var", "temperature"):
            return np.ones(leaf.shape, np.float32)
        if name in ("mean", "bias"):
            return np.zeros(leaf.shape, np.float32)
        fan_in = max(1, int(np.prod(leaf.shape[:-1])))
        return rng.standard_normal(leaf.shape, np.float32) / np.float32(fan_in) ** 0.5

    trees = jax.tree_util.tree_map_with_path(draw, jax.eval_shape(make_init(config, size)))
    return dict(zip(("params", "batch_stats"), trees, strict=True))
