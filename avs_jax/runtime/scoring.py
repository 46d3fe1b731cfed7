"""One pass of a model over a split: batches in, counts of every frame out.

Training validates with it and avs_jax.evaluate tests with it. Frames meet nowhere, neither in the
model nor here. Floating-point sums do depend on the shape of what is computed at once, by some 1e-7
of a probability, enough to move pixels across one of 255 thresholds; so a device always computes
one clip at a time. The counts then depend neither on the batch size nor on devices or processes.
"""

import io
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict
from tqdm import tqdm

from avs_jax.data.colour_masks import CLASS_PALETTE
from avs_jax.results import visualize
from avs_jax.results.counts import FrameCounter, FrameCounts, interleave
from avs_jax.results.negatives import count_motion
from avs_jax.results.postprocess import object_probability, sem_seg
from avs_jax.runtime.sharding import AXES, batch_sharding, put_batch
from avs_jax.runtime.step import make_predict_step

NOT_READ = ("labels", "moving")  # fields of a batch that are for counting only
MASK_STRIDE = 4  # pixels of the padded input per cell of pred_masks


class Evaluation(NamedTuple):
    """Result of one pass: counts of all processes' frames, and pictures by clip id."""

    counts: FrameCounts
    pictures: dict[str, np.ndarray]


def make_score_step(model, config: ConfigDict, mesh: Mesh):
    """The jitted way from a batch to what is scored, forward pass and postprocess in one.

    Args:
      model: Linen module.
      config: the whole configuration; reads evaluate.score_size and data.num_classes.
      mesh: devices that share the batch; each postprocesses its own rows, frame by frame.

    Returns:
      (params, batch_stats, batch) -> {"pred": [B, T, S, S], float32 probability of the object, or
      int32 class where there are more than two; "motion_weight": [B, T, g, g] where AMA is on}.
    """
    predict, binary = make_predict_step(model), config.data.num_classes == 2
    size = config.evaluate.score_size

    def classes(pred_logits, pred_masks, images, valid):
        def fold(x):
            return x.reshape(-1, *x.shape[2:])

        padded = tuple(MASK_STRIDE * n for n in pred_masks.shape[2:4])
        scores = sem_seg(
            fold(pred_logits), fold(pred_masks), padded, images.shape[2:4], size, fold(valid)
        )
        pred = object_probability(scores) if binary else scores.argmax(axis=-1)
        return pred.reshape(*valid.shape, size, size)

    rows = PartitionSpec(AXES)
    classes = jax.shard_map(classes, mesh=mesh, in_specs=(rows,) * 4, out_specs=rows)

    def step(params, batch_stats, batch):
        outputs = predict(params, batch_stats, batch)
        pred = classes(
            outputs["pred_logits"], outputs["pred_masks"], batch["images"], batch["valid"]
        )
        result = {"pred": pred}
        if "motion_weight" in outputs:
            result["motion_weight"] = outputs["motion_weight"]
        return result

    return jax.jit(step, out_shardings=batch_sharding(mesh))


def eval_batch_size(config: ConfigDict, mesh: Mesh) -> int:
    """Clips that are read at once: config.evaluate.batch_size, rounded up to fill every device."""
    return -(-config.evaluate.batch_size // mesh.size) * mesh.size


def evaluate(
    score_step,
    variables: tuple[Any, Any],
    loader: Iterable[Mapping[str, Any]],
    config: ConfigDict,
    mesh: Mesh,
    *,
    facts: Mapping[str, Any] | None = None,
    title: str = "evaluate",
    num_pictures: int = 0,
    each_batch: Callable[[np.ndarray, Mapping[str, Any]], None] | None = None,
    find_flow: Callable[[str], np.ndarray | None] | None = None,
) -> Evaluation:
    """One pass over a split.

    Args:
      score_step: from `make_score_step`.
      variables: (params, batch_stats).
      loader: finite; yields evaluation batches (spec.py), this process's rows.
      config: the whole configuration; reads data.num_classes.
      mesh: the one of score_step.
      facts: identify the run in the stored counts.
      title: of the progress line.
      num_pictures: draw the first clips that this process reads.
      each_batch: called with this process's predictions [B, T, S, S] of each batch, and the batch.
      find_flow: clip_id -> (u, v) [T, H, W, 2] for its picture, or None.

    Returns:
      The same counts on every process, in dataset order.

    Raises:
      ValueError: a clip came twice, or probabilities are NaN.
    """
    counter, share = FrameCounter(config.data.num_classes, facts), 1
    pictures: dict[str, np.ndarray] = {}
    total = len(loader) if hasattr(loader, "__len__") else None
    quiet = jax.process_index() != 0
    for batch in tqdm(
        loader, desc=title, total=total, unit="batch", disable=quiet or None, leave=False
    ):
        outputs = _score(score_step, variables, batch, mesh)
        more = None
        if "moving" in batch:
            more = count_motion(outputs["pred"], batch["labels"], batch["moving"])
        counter.add(outputs["pred"], batch, more)
        if each_batch is not None:
            each_batch(outputs["pred"], batch)
        has_truth = np.any(batch["valid"] & batch["supervised"], axis=1)
        for b, clip_id in enumerate(batch["clip_id"]):
            if len(pictures) < num_pictures and has_truth[b]:
                flow = find_flow(clip_id) if find_flow is not None else None
                pictures[clip_id] = _picture(batch, outputs, b, flow, title)
        share = len(batch["clip_id"])
    return Evaluation(_gather(counter.result(), share), pictures)


def _score(score_step, variables, batch, mesh: Mesh) -> dict[str, np.ndarray]:
    """What score_step says of a batch's rows of this process, one clip per device at a time."""
    inputs = {name: value for name, value in batch.items() if name not in NOT_READ}
    rows, step = len(inputs["valid"]), len(mesh.local_devices)
    under_way = []  # all are asked for before the first is waited for
    for i in range(0, rows, step):
        part = {name: value[i : i + step] for name, value in inputs.items()}
        under_way.append(score_step(*variables, put_batch(part, mesh)))
    parts = [{name: _local_rows(x) for name, x in outputs.items()} for outputs in under_way]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _picture(batch, outputs, b: int, flow: np.ndarray | None, title: str) -> np.ndarray:
    """The existing frames of row b, whose flow is given; the title says what was evaluated."""
    keep = np.asarray(batch["valid"][b])
    optional = {
        "log_mel": batch["log_mel"],
        "motion": batch.get("motion"),
        "motion_weight": outputs.get("motion_weight"),
    }
    return visualize.clip_picture(
        np.asarray(batch["images"][b])[keep],
        outputs["pred"][b][keep],
        np.asarray(batch["labels"][b])[keep],
        flow=flow,
        titles=[f"frame {i}" for i in np.asarray(batch["frame_index"][b])[keep]],
        heading=f"{batch['clip_id'][b]}  ({batch['category'][b]})  {title}",
        palette=CLASS_PALETTE if np.issubdtype(outputs["pred"].dtype, np.integer) else None,
        **{k: None if v is None else np.asarray(v[b])[keep] for k, v in optional.items()},
    )


def _local_rows(x: jax.Array) -> np.ndarray:
    """This process's rows of an array whose first axis is spread over the mesh."""
    shards = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def _gather(counts: FrameCounts, share: int) -> FrameCounts:
    """Joins the counts of all processes, on all of them."""
    if jax.process_count() == 1:
        return counts
    buffer = io.BytesIO()
    counts.save(buffer)
    data = np.frombuffer(buffer.getvalue(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([data.size])).ravel()
    padded = np.pad(data, (0, sizes.max() - data.size))
    parts = multihost_utils.process_allgather(padded).reshape(len(sizes), -1)
    files = [io.BytesIO(part[:size].tobytes()) for part, size in zip(parts, sizes, strict=True)]
    return interleave([FrameCounts.load(file) for file in files], share)
