"""The training loss of classes, masks and prototypes; every decoder layer gets its own matching.

For each prediction (the last layer and every auxiliary one), over the supervised frames:

  loss_ce    cross entropy of every query's class, "no object" where unmatched, as a weighted mean
             (weight `no_object_weight` for no object, 1 otherwise)
  loss_mask  BCE, mean over points, sum over matched masks / num_masks
  loss_dice  1 - (2 <p, t> + 1) / (sum p + sum t + 1) at the same points, sum / num_masks

With prototypes, once over the frames of `proto_valid`:

  loss_proto mean BCE of exp(logit_scale) * audio_embed . proto_embed with `proto_target`

Parts of the model may add terms (PART_LOSSES): loss_boundary of losses/boundary.py,
loss_consistency of losses/consistency.py, loss_sync_lag and loss_sync_rank of losses/synchrony.py.

num_masks is the number of targets of the supervised frames, at least 1. The points are the
`importance_sample_ratio * P` least certain of `oversample_ratio * P` uniform candidates on the
prediction; the rest are uniform (PointRend). Targets are padded with zeros, as the images are that
the predictions cover.

Every term is a sum divided by a count from the targets of the global batch (`loss_norms`).
Micro-batches use the norms of the whole batch, so their terms add up to the batch's (loss_boundary
where it is not capped).

Every random draw depends only on (key, layer, clip, frame), so training on a subset of a clip's
frames draws the same numbers as training on all of them.

Source: Mask2Former (arXiv 2112.01527, section 3.3 and 4) and VCT (CVPR 2025), criterion_*.py. They
draw points from one generator in call order; the distribution is the same.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from avs_jax.losses.boundary import boundary_loss
from avs_jax.losses.consistency import consistency_loss
from avs_jax.losses.matcher import match, matching_cost
from avs_jax.losses.synchrony import synchrony_losses
from avs_jax.ops.frames import fold_frames
from avs_jax.ops.rows import map_rows
from avs_jax.ops.sampling import sample_bilinear
from avs_jax.spec import MASK_STRIDE, frame_ids


def loss_norms(
    batch: Mapping[str, jax.Array], num_queries: int, no_object_weight: float
) -> dict[str, jax.Array]:
    """The divisors of a batch's loss terms, from its targets alone.

    A frame matches one query of class weight 1 per target, at most all of them. The others have
    `no_object_weight`.

    Returns:
      float32 [] each: class_weight (loss_ce), masks (loss_mask, loss_dice), frames (loss_boundary)
      and prototype_frames (loss_proto). None is 0.
    """
    targets = (batch["target_valid"] & batch["supervised"][..., None]).sum(-1)  # [B, T]
    matched = jnp.minimum(targets, num_queries)
    weight = matched + no_object_weight * (num_queries - matched)
    weight = jnp.where(batch["supervised"], weight, 0.0).sum()
    found = {
        "class_weight": jnp.where(weight > 0, weight, 1.0),
        "masks": jnp.maximum(targets.sum(), 1),
        "frames": jnp.maximum(batch["supervised"].sum(), 1),
    }
    if "proto_valid" in batch:
        found["prototype_frames"] = jnp.maximum(batch["proto_valid"].sum(), 1)
    return {name: value.astype(jnp.float32) for name, value in found.items()}


class PointSamples(NamedTuple):
    """Uniform random points in 0..1, (x, y), of one decoder layer."""

    matcher: jax.Array  # [N, P, 2]  shared by all masks of the frame
    candidates: jax.Array  # [N, M, int(oversample_ratio * P), 2]
    random: jax.Array  # [N, M, P - int(importance_sample_ratio * P), 2]


def sample_points(
    key: jax.Array, ids: jax.Array, layer: jax.Array, num_targets: int, loss_config: Any
) -> PointSamples:
    """Draws the points of one layer; a frame's points depend on key, layer and frame id only.

    `ids` are int32 [N]; `layer` is int32 [], 0 for the last layer of the decoder, 1 + i for
    auxiliary output i.
    """
    num_points = loss_config.num_points
    num_candidates = int(loss_config.oversample_ratio * num_points)
    num_random = num_points - int(loss_config.importance_sample_ratio * num_points)
    layer_key = jax.random.fold_in(key, layer)
    ends = np.cumsum([num_points, num_targets * num_candidates, num_targets * num_random])

    def draw(frame_id):
        # One call for all points: the generator dominates the compile time here.
        points = jax.random.uniform(jax.random.fold_in(layer_key, frame_id), (ends[-1], 2))
        matcher, candidates, random = jnp.split(points, ends[:-1])
        return PointSamples(
            matcher=matcher,
            candidates=candidates.reshape(num_targets, num_candidates, 2),
            random=random.reshape(num_targets, num_random, 2),
        )

    return jax.vmap(draw)(ids)


def compute_losses(
    outputs: Mapping[str, Any],
    batch: Mapping[str, jax.Array],
    key: jax.Array,
    norms: Mapping[str, jax.Array] | None = None,
    *,
    loss_config: Any,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of a batch, or a micro-batch's share of it, by the `norms` of the whole batch.

    Reads target_masks, target_labels, target_valid, supervised, frame_index and, with prototypes,
    proto_target and proto_valid.

    Returns:
      float32 [], the sum of all terms; and the weighted terms by name: loss_ce, loss_mask and
      loss_dice of the last layer, the same with suffix _i for auxiliary output i, loss_proto, and
      those of PART_LOSSES. With loss_boundary come values that are not in the sum, boundary_*.
    """
    ids = frame_ids(batch["frame_index"])
    num_targets = batch["target_valid"].shape[2]

    def draw(layer):
        return sample_points(key, ids, layer, num_targets, loss_config)

    return criterion(outputs, batch, draw, loss_config, norms)


def criterion(
    outputs: Mapping[str, Any],
    targets: Mapping[str, jax.Array],
    draw: Callable[[jax.Array], PointSamples],
    loss_config: Any,
    norms: Mapping[str, jax.Array] | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`compute_losses` with given points: `draw(layer)` takes a traced int32, frames are folded."""
    norms = norms or {}
    names = ("target_masks", "target_labels", "supervised", "target_valid")
    frames = {name: fold_frames(targets[name]) for name in names}
    frames["target_valid"] &= frames["supervised"][:, None]
    layers = [outputs, *outputs.get("aux_outputs", ())]
    logits = jnp.stack([fold_frames(layer["pred_logits"]) for layer in layers])
    masks = jnp.stack([fold_frames(layer["pred_masks"]) for layer in layers])
    sides = zip(masks.shape[2:4], frames["target_masks"].shape[2:], strict=True)
    more = [(0, MASK_STRIDE * cells - pixels) for cells, pixels in sides]
    frames["target_masks"] = jnp.pad(frames["target_masks"], ((0, 0), (0, 0), *more))

    num_layers = len(layers)
    steps = jnp.arange(num_layers)

    # Mapping over layers keeps one layer's points in memory at a time, so `draw` runs twice per
    # layer. All layers are matched at once, because the matching is many tiny sequential steps.
    def layer_cost(inputs):
        layer, logits, masks = inputs
        points = draw(layer).matcher
        frame_targets = frames["target_masks"], frames["target_labels"]
        return matching_cost(logits, masks, *frame_targets, points, loss_config)

    def layer_terms(inputs):
        layer, logits, masks, query = inputs
        return _layer_losses(logits, masks, query, frames, draw(layer), loss_config, norms)

    cost = jax.lax.map(layer_cost, jax.lax.stop_gradient((steps, logits, masks)))
    valid = frames["target_valid"]
    query = jax.vmap(match, in_axes=(0, None))(cost, valid)
    by_layer = jax.lax.map(layer_terms, (steps, logits, masks, query))
    terms = {}
    for layer in range(num_layers):
        suffix = f"_{layer - 1}" if layer else ""
        terms.update({name + suffix: values[layer] for name, values in by_layer.items()})
    if "proto_embed" in outputs:
        terms["loss_proto"] = loss_config.proto_weight * _prototype_loss(outputs, targets, norms)
    total, figures = sum(terms.values()), {}
    mask_terms = terms["loss_mask"] + terms["loss_dice"]
    for output, part_loss in PART_LOSSES.items():
        if output in outputs:
            more, values = part_loss(outputs, targets, mask_terms, loss_config, norms)
            terms |= more
            figures |= values
            total += sum(more.values())
    return total, terms | figures


def _boundary_terms(outputs, targets, mask_terms, loss_config, norms):
    term, figures = boundary_loss(outputs, targets, mask_terms, loss_config, norms)
    return {"loss_boundary": term}, figures


def _consistency_terms(outputs, targets, mask_terms, loss_config, norms):
    del mask_terms
    return {"loss_consistency": consistency_loss(outputs, targets, loss_config, norms)}, {}


def _synchrony_terms(outputs, targets, mask_terms, loss_config, norms):
    del mask_terms
    return synchrony_losses(outputs, targets, loss_config, norms), {}


# An output of a part -> its loss: (outputs, targets, loss_mask + loss_dice of the last layer,
# config.loss, norms) -> (weighted terms, values to log).
PART_LOSSES: dict[str, Callable[..., tuple[dict, dict]]] = {
    "edge_logits": _boundary_terms,
    "motion_embed": _consistency_terms,
    "sync_lags": _synchrony_terms,
}


def _layer_losses(
    pred_logits: jax.Array,
    pred_masks: jax.Array,
    query: jax.Array,
    frames: Mapping[str, jax.Array],
    draws: PointSamples,
    loss_config: Any,
    norms: Mapping[str, jax.Array],
) -> dict[str, jax.Array]:
    """Weighted terms of one layer given its matching, the query [N, M] of each target.

    Fields of `frames` are [N, ...], `target_valid` False where not supervised.
    """
    pred_logits, pred_masks = pred_logits.astype(jnp.float32), pred_masks.astype(jnp.float32)
    labels, valid = frames["target_labels"], frames["target_valid"]
    loss_ce = _class_loss(
        pred_logits,
        labels,
        query,
        valid,
        frames["supervised"],
        loss_config.no_object_weight,
        norms.get("class_weight"),
    )
    matched = jnp.take_along_axis(pred_masks, query[:, None, None, :], axis=-1)  # [N, h, w, M]
    matched = jnp.moveaxis(matched, -1, 1)
    points = uncertain_points(matched, draws, loss_config)
    mask, target = _sample_masks(matched, points), _sample_masks(frames["target_masks"], points)
    bce = (jax.nn.softplus(mask) - mask * target).mean(-1)
    probability = jax.nn.sigmoid(mask)
    overlap = (probability * target).sum(-1)
    dice = 1 - (2 * overlap + 1) / (probability.sum(-1) + target.sum(-1) + 1)
    num_masks = norms.get("masks", jnp.maximum(valid.sum(), 1))
    return {
        "loss_ce": loss_config.class_weight * loss_ce,
        "loss_mask": loss_config.mask_weight * jnp.where(valid, bce, 0).sum() / num_masks,
        "loss_dice": loss_config.dice_weight * jnp.where(valid, dice, 0).sum() / num_masks,
    }


def _class_loss(
    logits: jax.Array,
    labels: jax.Array,
    query: jax.Array,
    valid: jax.Array,
    supervised: jax.Array,
    no_object_weight: float,
    norm: jax.Array | None,
) -> jax.Array:
    """Weighted mean cross entropy over queries of supervised frames; 0 if there are none."""
    no_object = logits.shape[-1] - 1
    is_match = jax.nn.one_hot(query, logits.shape[1], dtype=bool) & valid[:, :, None]  # [N, M, Q]
    label = jnp.where(is_match, labels[:, :, None], 0).sum(1)
    label = jnp.where(is_match.any(1), label, no_object)
    log_probability = jax.nn.log_softmax(logits, axis=-1)
    nll = -jnp.take_along_axis(log_probability, label[:, :, None], axis=-1)[:, :, 0]
    weight = jnp.where(label == no_object, no_object_weight, 1.0) * supervised[:, None]
    if norm is None:
        total = weight.sum()
        norm = jnp.where(total > 0, total, 1)
    return (weight * nll).sum() / norm


def uncertain_points(masks: jax.Array, draws: PointSamples, loss_config: Any) -> jax.Array:
    """The points at which a matched mask is compared with its target: [N, M, P, 2], constants.

    The least certain candidates (logit nearest 0) come first, then the uniform ones. `masks` are
    logits, float32 [N, M, h, w].
    """
    num_uncertain = int(loss_config.importance_sample_ratio * loss_config.num_points)
    logits = _sample_masks(jax.lax.stop_gradient(masks), draws.candidates)
    index = map_rows(lambda x: jax.lax.top_k(x, num_uncertain)[1], -jnp.abs(logits))
    uncertain = jnp.take_along_axis(draws.candidates, index[..., None], axis=2)
    return jnp.concatenate([uncertain, draws.random], axis=2)


def _sample_masks(masks: jax.Array, points: jax.Array) -> jax.Array:
    """[N, M, h, w] at [N, M, P, 2] -> float32 [N, M, P], every mask at its own points."""
    num_frames, num_targets, height, width = masks.shape
    images = masks.reshape(num_frames * num_targets, height, width, 1)
    values = sample_bilinear(images, points.reshape(num_frames * num_targets, -1, 2))
    return values.reshape(num_frames, num_targets, -1)


def _prototype_loss(
    outputs: Mapping[str, Any],
    targets: Mapping[str, jax.Array],
    norms: Mapping[str, jax.Array],
) -> jax.Array:
    """Unweighted mean BCE over [frames of proto_valid, K']; 0 if there are none."""
    audio, proto = (outputs[name].astype(jnp.float32) for name in ("audio_embed", "proto_embed"))
    similarity = jnp.einsum("btd,kd->btk", audio, proto, precision="highest")
    logits = jnp.exp(outputs["logit_scale"].astype(jnp.float32)) * similarity
    bce = jax.nn.softplus(logits) - logits * targets["proto_target"]
    valid = targets["proto_valid"][:, :, None]
    frames = norms.get("prototype_frames", valid.sum())
    return jnp.where(valid, bce, 0).sum() / jnp.maximum(frames * proto.shape[0], 1)
