"""Pixel scores from the outputs of a segmentation model, on the device."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from avs_jax.ops.frames import fold_frames, unfold_frames
from avs_jax.ops.sampling import resize_bilinear
from avs_jax.results.postprocess import object_probability, sem_seg
from avs_jax.spec import MASK_STRIDE, SIZE_DIVISOR

PICTURED = ("motion_weight", "motion_gate", "sync_evidence", "sync_gate", "sync_lag")


def query_scores(
    outputs: Mapping[str, jax.Array], inputs: Mapping[str, jax.Array], score_size: tuple[int, int]
) -> jax.Array:
    """Class scores float32 [B, T, *score_size, K] of all frames from their queries.

    Reads pred_logits [B, T, Q, K+1], pred_masks [B, T, h, w, Q], images [B, T, H, W, 3] and valid
    [B, T]; frames that are not valid score zero.
    """
    logits, masks, valid = outputs["pred_logits"], outputs["pred_masks"], inputs["valid"]
    scores = sem_seg(
        fold_frames(logits),
        fold_frames(masks),
        tuple(MASK_STRIDE * n for n in masks.shape[2:4]),
        inputs["images"].shape[2:4],
        score_size,
        fold_frames(valid),
    )
    return unfold_frames(scores, valid.shape[1])


def logit_scores(
    outputs: Mapping[str, jax.Array], inputs: Mapping[str, jax.Array], score_size: tuple[int, int]
) -> jax.Array:
    """Class scores as those of `query_scores`, from maps of logits: pred_masks [B, T, h, w, K'].

    One map of logits is the object's: its scores are (0, logit), whose softmax is (1 - p, p) of
    p = sigmoid(logit). More maps are scores of their classes. The maps cover the padded image and
    are resized to it; with a cell per pixel, nothing is resized at the image's own size. Source:
    AVSBench, which takes p > 0.5, p by thresholds for F, or the argmax.
    """
    (height, width), valid = inputs["images"].shape[2:4], inputs["valid"]
    padded = tuple(size + -size % SIZE_DIVISOR for size in (height, width))
    logits = resize_bilinear(outputs["pred_masks"].astype(jnp.float32), padded)
    scores = resize_bilinear(logits[:, :, :height, :width], score_size)
    if scores.shape[-1] == 1:
        scores = jnp.concatenate([jnp.zeros_like(scores), scores], axis=-1)
    return jnp.where(valid[:, :, None, None, None], scores, 0.0)


def score(
    outputs: Mapping[str, jax.Array],
    inputs: Mapping[str, jax.Array],
    *,
    scores: Callable[..., jax.Array],
    size: int,
) -> dict[str, jax.Array]:
    """What an evaluation keeps of the outputs.

    Args:
      scores: of a host, such as `query_scores`.
      size: S, at which predictions meet the ground truth.

    Returns:
      "pred" [B, T, S, S]: float32 probability of the object, or int32 class where there are more
      than two; and what figures show of the fusions, PICTURED, where the model has it.
    """
    found = scores(outputs, inputs, (size, size))
    pred = object_probability(found) if found.shape[-1] == 2 else found.argmax(axis=-1)
    return {"pred": pred} | {name: outputs[name] for name in PICTURED if name in outputs}


FALLBACKS = ("none", "zeros", "prev_frame", "top_query")


def expression_score(
    outputs: Mapping[str, jax.Array],
    inputs: Mapping[str, jax.Array],
    *,
    size: tuple[int, int],
    threshold: float,
    fallback: str,
    presence_threshold: float = 0.5,
) -> dict[str, jax.Array]:
    """Probabilities of what an expression means; frames without it have none.

    The probability is the score of class 1 over the queries' probabilities of it, if their sum is
    above 1: several queries that all mean the object vote, as a sum even cells that each of them
    doubts would pass. It is 0 where no query has a mask, while the softmax of both scores would be
    0.5, above Ref-AVS's threshold of 0.4.

    A mask counts where presence p_t > presence_threshold. Where it is but no pixel passes the
    threshold, the fallback replaces the mask: by the frame before that has one ("prev_frame"), by
    the mask of the query that is most likely the object ("top_query"), or by zeros. It never fires
    where p_t says that nothing is meant, nor changes a mask that is not empty: on null expressions,
    only a wrong p_t makes it fire.

    Args:
      outputs: pred_logits, pred_masks and presence_logits [B, T].
      inputs: images and valid, of B clips or of clips with as many of the B expressions each.
      size: (h, w) of the result.
      threshold: of an empty mask.
      fallback: one of FALLBACKS.
      presence_threshold: of p_t, at least 0 and below 1.

    Returns:
      "pred" float32 [B, T, h, w], "presence" float32 [B, T], and "fallback" bool [B, T].
    """
    times = outputs["presence_logits"].shape[0] // inputs["valid"].shape[0]
    inputs = {**inputs, "valid": jnp.repeat(inputs["valid"], times, axis=0)}
    votes = jax.nn.softmax(outputs["pred_logits"].astype(jnp.float32), axis=-1)[..., 1].sum(-1)
    prob = query_scores(outputs, inputs, size)[..., 1] / jnp.maximum(votes, 1.0)[:, :, None, None]
    prob = jnp.minimum(prob, 1.0)  # which rounding may pass
    presence = jax.nn.sigmoid(outputs["presence_logits"].astype(jnp.float32))
    is_present = (presence > presence_threshold) & inputs["valid"]
    is_empty = ~(prob > threshold).any((2, 3))
    fires = is_present & is_empty & (fallback != "none")
    replaced = prob
    if fallback == "zeros":
        replaced = jnp.zeros_like(prob)
    elif fallback == "top_query":
        replaced = _top_query(outputs, inputs, size)
    elif fallback == "prev_frame":
        frames = jnp.arange(prob.shape[1])[None]
        last = jax.lax.cummax(jnp.where(is_present & ~is_empty, frames, -1), axis=1)
        before = jnp.take_along_axis(prob, jnp.maximum(last, 0)[:, :, None, None], axis=1)
        replaced = jnp.where((last >= 0)[:, :, None, None], before, prob)
    prob = jnp.where(fires[:, :, None, None], replaced, prob)
    prob = jnp.where(is_present[:, :, None, None], prob, 0.0)
    return {"pred": prob, "presence": presence, "fallback": fires}


def _top_query(outputs, inputs, size):
    """Probability [B, T, h, w] by the query with the greatest probability of class 1."""
    logits, masks = outputs["pred_logits"], outputs["pred_masks"]
    best = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)[..., 1].argmax(-1)
    mask = jnp.take_along_axis(masks, best[:, :, None, None, None], axis=-1)
    certain = jnp.full((*best.shape, 1, logits.shape[-1]), -1e9).at[..., 1].set(0.0)
    chosen = {"pred_logits": certain, "pred_masks": mask}
    return query_scores(chosen, inputs, size)[..., 1].clip(0, 1)


def derive(
    outputs: Mapping[str, jax.Array],
    inputs: Mapping[str, jax.Array],
    *,
    scores: Callable[..., jax.Array],
    size: int,
) -> dict[str, jax.Array]:
    """The outputs with sem_seg, the class scores float32 [B, T, S, S, K]."""
    return {**outputs, "sem_seg": scores(outputs, inputs, (size, size))}
