"""Losses that bring the embeddings of what belongs together close, and push the others apart.

s [B, B] holds the cosines of the rows of one modality (queries) with those of another (items); row
i and column i belong together. t is a learned scale, at most MAX_SCALE. A loss of queries to items
is a function of s; the symmetric one is its mean with that of s transposed.

  infonce   mean over queries of -sum_j q_ij log softmax_j(t (s_ij + m_ij)), q even over positives
  sigmoid   mean over queries of sum_j softplus(-z_ij (t s_ij + b)), z = 1 for positives, else -1
  triplet   mean over queries of the sum over negatives j of max(0, margin + s_ij - s_ii), over
            all negatives, the hardest, or the hardest semi-hard one: s_ii - margin < s_ij < s_ii

`positives` widens what belongs together (by default the diagonal alone); `ignored` names pairs that
are neither positive nor negative. A query without a positive does not count. m is the adaptive
margin min(delta, beta (1 - mean of the cosines within either modality)): a harder task for pairs
that are unlike each other.

Under jit on a mesh the batch is the global one, so negatives come from all devices.

Sources: infonce, CLIP (Radford et al., ICML 2021) and, with several positives, SupCon (Khosla et
al., NeurIPS 2020, L_out); sigmoid, SigLIP (Zhai et al., ICCV 2023); triplet, FaceNet (Schroff et
al., CVPR 2015); the margin, AVIGATE (Jeong et al., CVPR 2025). Departures: CLIP clips the parameter
of the scale after each step, here the step's gradient does not raise it above the limit.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

MAX_SCALE = 100.0
MININGS = ("all", "hardest", "semihard")
LOSSES = ("infonce", "sigmoid", "triplet")
TREATMENTS = ("negative", "ignored", "positive")  # of pairs of the same class

Array = jax.Array


# ---- the learned scale ----


@jax.custom_vjp
def scale_of(log_scale: Array) -> Array:
    """exp of a learned log, at most MAX_SCALE; at the limit, only gradients that lower it pass."""
    return jnp.exp(jnp.minimum(log_scale, math.log(MAX_SCALE)))


def _scale_forward(log_scale):
    scale = scale_of(log_scale)
    return scale, (log_scale, scale)


def _scale_backward(kept, gradient):
    log_scale, scale = kept
    raises = (log_scale >= math.log(MAX_SCALE)) & (gradient < 0)
    return (jnp.where(raises, 0.0, gradient * scale),)


scale_of.defvjp(_scale_forward, _scale_backward)


# ---- which pairs are what ----


def same_label(labels: Array) -> Array:
    """bool [B, B]: both rows have this label; negative ones are unknown and equal nothing."""
    return (labels[:, None] == labels[None]) & (labels[:, None] >= 0)


def near_seconds(clip: Array, second: Array, distance: int = 1) -> Array:
    """bool [B, B]: moments of one clip that are at most `distance` seconds apart."""
    near = jnp.abs(second[:, None] - second[None]) <= distance
    return near & (clip[:, None] == clip[None])


def adaptive_margin(queries: Array, items: Array, beta: float = 0.2, delta: float = 0.1) -> Array:
    """The margin [B, B] of embeddings of unit length [B, D]; 0 on the diagonal, no gradient."""
    within = (queries @ queries.T + items @ items.T) / 2
    margin = jnp.minimum(delta, beta * (1 - within))
    return jax.lax.stop_gradient(jnp.where(_diagonal(margin), 0.0, margin))


def _diagonal(square: Array) -> Array:
    return jnp.eye(square.shape[0], dtype=bool)


def _split(similarity: Array, positives: Array | None, ignored: Array | None):
    """Positives and negatives, bool [B, B]; a positive is never ignored."""
    positives = _diagonal(similarity) if positives is None else positives
    negatives = ~positives if ignored is None else ~positives & ~ignored
    return positives, negatives


def _mean(values: Array, counts: Array) -> Array:
    """Mean over the entries that count; 0 if there are none."""
    return jnp.where(counts, values, 0.0).sum() / jnp.maximum(counts.sum(), 1)


# ---- losses of queries to items ----


def infonce(
    similarity: Array,
    scale: Array | float,
    positives: Array | None = None,
    ignored: Array | None = None,
    margin: Array | None = None,
) -> Array:
    """See the module's docstring; float32 [].

    Args:
      similarity: float32 [B, B], row i with the items.
      scale: t.
      positives, ignored: bool [B, B]; None: the diagonal, and none.
      margin: [B, B], added to the similarity.
    """
    positives, negatives = _split(similarity, positives, ignored)
    logits = scale * (similarity if margin is None else similarity + margin)
    shown = jnp.where(positives | negatives, logits, -jnp.inf)
    has_positive = positives.any(1)
    # A row with nothing to show would give NaN, in the gradient too.
    shown = jnp.where(has_positive[:, None], shown, 0.0)
    log_p = jax.nn.log_softmax(shown, axis=1)
    share = positives / jnp.maximum(positives.sum(1, keepdims=True), 1)
    return _mean(-jnp.where(positives, share * log_p, 0.0).sum(1), has_positive)


def sigmoid(
    similarity: Array,
    scale: Array | float,
    bias: Array | float,
    positives: Array | None = None,
    ignored: Array | None = None,
) -> Array:
    """See the module's docstring; float32 [], b = `bias`."""
    positives, negatives = _split(similarity, positives, ignored)
    logits = scale * similarity + bias
    pairs = jnp.where(positives, jax.nn.softplus(-logits), 0.0)
    pairs += jnp.where(negatives, jax.nn.softplus(logits), 0.0)
    return _mean(pairs.sum(1), positives.any(1))


def triplet(
    similarity: Array,
    margin: float,
    mining: str,
    ignored: Array | None = None,
    exists: Array | None = None,
) -> Array:
    """See the module's docstring; float32 [].

    A query's positive is its own item. Without a semi-hard negative, a query does not count for
    "semihard".

    Args:
      similarity: float32 [B, B].
      margin: of the hinge.
      mining: one of MININGS.
      ignored: bool [B, B], pairs that are no negatives.
      exists: bool [B], queries that count; None: all.
    """
    exists = jnp.ones(len(similarity), bool) if exists is None else exists
    own = jnp.diagonal(similarity)[:, None]
    _, negatives = _split(similarity, None, ignored)
    if mining == "semihard":
        negatives &= (similarity > own - margin) & (similarity < own)
    hinge = jnp.where(negatives, jnp.maximum(0.0, margin + similarity - own), 0.0)
    if mining == "all":
        return _mean(hinge.sum(1), exists)
    counts = exists & negatives.any(1) if mining == "semihard" else exists
    return _mean(hinge.max(1), counts)


# ---- the loss of a batch ----


def compute_losses(
    outputs: Mapping[str, Any],
    batch: Mapping[str, Array],
    key: Array | None,
    norms: Mapping[str, Array] | None = None,
    *,
    pairs: Sequence[tuple[str, str]],
    loss_config: Any,
) -> tuple[Array, dict[str, Array]]:
    """The mean over pairs of modalities of their symmetric losses.

    Sound and frames are compared clip by clip, or second by second where the unit is "second";
    text always belongs to a clip.

    Args:
      outputs: {modality}_embed float32 [B, D] and, where the unit is "second", {modality}_seconds
        [B, T, D], all of unit length; logit_scale and, for "sigmoid", logit_bias [].
      batch: label int32 [B], negative where unknown; where the unit is "second", valid bool [B, T]
        and second int32 [B, T], of the clip.
      key: unused, nothing is drawn.
      norms: unused, the rows of a batch are compared with each other.
      pairs: of modalities.
      loss_config: config.loss: name, unit, same_class, margin, mining, beta and delta.

    Returns:
      float32 []; and the terms loss_PAIR that sum to it.
    """
    del key, norms
    terms = {}
    for pair in pairs:
        first, second = pair
        by_second = loss_config.unit == "second" and "text" not in pair
        kind = "seconds" if by_second else "embed"
        rows = [outputs[f"{name}_{kind}"] for name in (first, second)]
        positives, ignored = _relations(batch, loss_config, by_second, "text" in pair)
        if by_second:
            rows = [x.reshape(-1, x.shape[-1]) for x in rows]
        loss = _symmetric(*rows, outputs, positives, ignored, loss_config)
        terms[f"loss_{first}_{second}"] = loss / len(pairs)
    return sum(terms.values()), terms


def _relations(batch, loss_config, by_second: bool, has_text: bool) -> tuple[Array, Array]:
    """Positive and ignored pairs, bool [B, B] or [B T, B T].

    Texts are made of classes, so those of one class are equal, and never negatives.
    """
    label = batch["label"]
    if by_second:
        num_clips, num_frames = batch["valid"].shape
        label = jnp.repeat(label, num_frames)
        clip = jnp.repeat(jnp.arange(num_clips), num_frames)
        second = batch["second"].reshape(-1)
    same, own = same_label(label), jnp.eye(len(label), dtype=bool)
    treatment = loss_config.same_class
    if has_text and treatment == "negative":
        treatment = "ignored"
    positives = own | same if treatment == "positive" else own
    ignored = same & ~positives if treatment == "ignored" else jnp.zeros_like(own)
    if by_second:
        ignored |= near_seconds(clip, second) & ~own
        positives &= ~ignored
        exists = batch["valid"].reshape(-1)
        exists = exists[:, None] & exists[None]
        positives, ignored = positives & exists, ignored | ~exists
    return positives, ignored


def _symmetric(queries, items, outputs, positives, ignored, loss_config) -> Array:
    """Mean of the losses of queries to items and of items to queries."""
    if loss_config.name == "triplet":

        def loss(similarity, positives, ignored):
            others = ignored | positives  # nor is another positive a negative
            exists = positives.any(1)
            return triplet(similarity, loss_config.margin, loss_config.mining, others, exists)

    elif loss_config.name == "sigmoid":

        def loss(similarity, positives, ignored):
            scale, bias = scale_of(outputs["logit_scale"]), outputs["logit_bias"]
            return sigmoid(similarity, scale, bias, positives, ignored)

    else:
        margin = None
        if loss_config.beta:
            margin = adaptive_margin(queries, items, loss_config.beta, loss_config.delta)

        def loss(similarity, positives, ignored):
            scale = scale_of(outputs["logit_scale"])
            return infonce(similarity, scale, positives, ignored, margin)

    similarity = queries @ items.T
    there = loss(similarity, positives, ignored)
    return (there + loss(similarity.T, positives.T, ignored.T)) / 2
