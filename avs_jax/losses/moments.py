"""The loss of moment retrieval: windows matched to queries, and how salient each clip is.

Per decoder layer, with its own matching (r = span as center and width, p = class probability):

  cost(q, m)   span (|dc| + |dw|) - giou gIoU - label p_q[foreground]
  loss_span    span * mean over matched pairs and both coordinates of |r_q - r_m|
  loss_giou    giou * mean over matched pairs of 1 - gIoU(r_q, r_m)
  loss_label   label * mean over B Q of w CE, w = eos for queries without a target

Saliency s of the clips, and s' under another text (`saliency_neg`); loss_saliency is the sum of

  hinge        2 mean over pairs of max(0, margin + s_worse - s_better)
  rank         sum over r = 1..11 of the mean over B of -mean log p of the clips with a label >= r,
               p = softmax([s ; s'] / 0.5), divided by 12; a row without such a clip counts 0
  pair         mean over rows of the sum over clips of -log(1 - sigmoid(s'))

times `saliency`. The weights are keys of config.loss.

Batch fields that it reads beside the model's `video_mask` (bool [B, L]):

  target_spans        float32 [B, W, 2]   windows, (center, width) as shares of the clip
  target_valid        bool    [B, W]      the window exists
  saliency_pos_pairs  int32   [B, P]      the better clip of each pair (P = 2: a hard, an easy one)
  saliency_neg_pairs  int32   [B, P]      the worse clip; -1 in either field: no such pair
  saliency_labels     float32 [B, L]      annotated score of each clip, summed over annotators
  text_id             int32   [B]         rows with the same query have the same number

Source: Moon et al. (CVPR 2023), wjun0830/QD-DETR, commit 56c63b2; the matching and the windows'
terms are DETR's and Moment-DETR's.
Departures: a row whose neighbor has the same text has no s', so that no score is pushed both ways
(`same_text_negatives` keeps them, as the original does; a batch of one is its own neighbor).
-log(1 - sigmoid(x)) is softplus(x), where the original overflows near 17. Matching runs on the
device, see matcher.py.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from avs_jax.losses.matcher import match

TEMPERATURE = 0.5  # of the rank-contrastive term
NUM_RANKS = 11
RANK_DIVISOR = 12  # the original's, for its eleven ranks
HIDDEN_SCORE = -1000.0  # of clips that do not exist
RANK_EPSILON = 1e-6
NO_QUERY_COST = 1e3  # above any cost; of a target beyond the number of queries


def compute_losses(
    outputs: Mapping[str, Any],
    batch: Mapping[str, jax.Array],
    key: jax.Array | None,
    norms: Mapping[str, jax.Array] | None = None,
    *,
    loss_config: Any,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of a batch.

    Args:
      outputs: QDDETR's, in training.
      batch: see the module's docstring.
      key: unused, nothing is drawn.
      norms: unused; the rows of a batch are coupled by s', so a step cannot split it.
      loss_config: config.loss: span, giou, label, eos, saliency, margin, saliency_only (no windows
        and no matching: TVSum) and same_text_negatives.

    Returns:
      float32 [], the sum of the terms; and the weighted terms loss_span, loss_giou, loss_label, the
      same with suffix _i of auxiliary output i, and loss_saliency. Beside them, not in the sum:
      saliency_hinge, saliency_rank, saliency_pair and class_error (%, of matched queries).
    """
    del key, norms
    terms, figures = {}, {}
    if not loss_config.saliency_only:
        layers = [("", outputs)]
        layers += [(f"_{i}", layer) for i, layer in enumerate(outputs["aux_outputs"])]
        for suffix, layer in layers:
            found, figures[f"class_error{suffix}"] = _window_losses(layer, batch, loss_config)
            terms |= {name + suffix: value for name, value in found.items()}
    parts = _saliency_losses(outputs, batch, loss_config)
    terms["loss_saliency"] = loss_config.saliency * sum(parts.values())
    return sum(terms.values()), terms | parts | figures


def _window_losses(
    outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array], loss_config: Any
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Weighted terms of one decoder layer, and the class error of its matched queries."""
    logits = outputs["pred_logits"].astype(jnp.float32)
    spans, targets = outputs["pred_spans"].astype(jnp.float32), batch["target_spans"]
    num_queries = logits.shape[1]
    query, is_matched = match_windows(logits, spans, targets, batch["target_valid"], loss_config)
    count = jnp.maximum(is_matched.sum(), 1)
    chosen = jnp.minimum(query, num_queries - 1)[:, :, None]
    matched = jnp.take_along_axis(spans, chosen, axis=1)  # [B, W, 2]
    distance = jnp.abs(matched - targets).mean(-1)
    overlap = generalized_iou(matched, targets)

    is_foreground = (jax.nn.one_hot(query, num_queries, dtype=bool) & is_matched[:, :, None]).any(1)
    log_p = jax.nn.log_softmax(logits, axis=-1)
    nll = -jnp.where(is_foreground, log_p[..., 0], loss_config.eos * log_p[..., 1])
    is_right = jnp.take_along_axis(logits[..., 0] >= logits[..., 1], chosen[..., 0], axis=1)
    error = 100 * (1 - jnp.where(is_matched, is_right, 0).sum() / count)
    return {
        "loss_span": loss_config.span * jnp.where(is_matched, distance, 0).sum() / count,
        "loss_giou": loss_config.giou * jnp.where(is_matched, 1 - overlap, 0).sum() / count,
        "loss_label": loss_config.label * nll.mean(),
    }, error


def match_windows(
    logits: jax.Array,
    spans: jax.Array,
    targets: jax.Array,
    target_valid: jax.Array,
    loss_config: Any,
) -> tuple[jax.Array, jax.Array]:
    """The query of each window in the assignment of least total cost.

    Args:
      logits: float32 [B, Q, 2], index 0 = foreground.
      spans: float32 [B, Q, 2].
      targets: float32 [B, W, 2], with target_valid bool [B, W].
      loss_config: config.loss; reads span, giou and label.

    Returns:
      int32 [B, W]; and bool [B, W], whether the window has that query: it exists, and there are as
      many queries.
    """
    logits, spans = jax.lax.stop_gradient((logits, spans))
    pred, true = spans[:, :, None], targets[:, None]
    probability = jax.nn.softmax(logits, axis=-1)[..., :1]
    cost = loss_config.span * jnp.abs(pred - true).sum(-1)
    cost += -loss_config.giou * generalized_iou(pred, true) - loss_config.label * probability
    num_queries, num_windows = cost.shape[1:]
    extra = max(0, num_windows - num_queries)
    cost = jnp.pad(cost, ((0, 0), (0, extra), (0, 0)), constant_values=NO_QUERY_COST)
    query = match(cost, target_valid)
    return query, target_valid & (query < num_queries)


def generalized_iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Of windows (center, width) [..., 2] that broadcast: float32 [...] in -1..1.

    IoU - (hull - union) / hull; of two empty windows 0.
    """
    (a_start, a_end), (b_start, b_end) = (
        (x[..., 0] - x[..., 1] / 2, x[..., 0] + x[..., 1] / 2) for x in (a, b)
    )
    overlap = jnp.maximum(jnp.minimum(a_end, b_end) - jnp.maximum(a_start, b_start), 0)
    union = (a_end - a_start) + (b_end - b_start) - overlap
    hull = jnp.maximum(a_end, b_end) - jnp.minimum(a_start, b_start)
    tiny = jnp.finfo(jnp.float32).tiny
    return overlap / jnp.maximum(union, tiny) - (hull - union) / jnp.maximum(hull, tiny)


def _saliency_losses(
    outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array], loss_config: Any
) -> dict[str, jax.Array]:
    """The three parts, unweighted."""
    score, other = (
        outputs[name].astype(jnp.float32) for name in ("saliency_scores", "saliency_neg")
    )
    valid = batch["video_mask"]
    if loss_config.same_text_negatives:
        has_other = jnp.ones(len(valid), bool)
    else:
        has_other = batch["text_id"] != jnp.roll(batch["text_id"], -1)
    other_valid = valid & has_other[:, None]

    pos, neg = batch["saliency_pos_pairs"], batch["saliency_neg_pairs"]
    better, worse = (
        jnp.take_along_axis(score, jnp.maximum(index, 0), axis=1) for index in (pos, neg)
    )
    is_pair = (pos >= 0) & (neg >= 0)
    hinge = jnp.where(is_pair, jnp.maximum(loss_config.margin + worse - better, 0), 0)
    pair = jnp.where(other_valid, jax.nn.softplus(other), 0).sum(1)
    return {
        "saliency_hinge": 2 * hinge.sum() / jnp.maximum(is_pair.sum(), 1),
        "saliency_rank": _rank_loss(score, other, batch["saliency_labels"], valid, other_valid),
        "saliency_pair": pair.sum() / jnp.maximum(has_other.sum(), 1),
    }


def _rank_loss(
    score: jax.Array,
    other: jax.Array,
    labels: jax.Array,
    valid: jax.Array,
    other_valid: jax.Array,
) -> jax.Array:
    """The rank-contrastive part; all arguments [B, L]."""
    hidden = jnp.where(
        jnp.concatenate([valid, other_valid], axis=1),
        jnp.concatenate([score, other], axis=1),
        HIDDEN_SCORE,
    )
    logits = hidden / TEMPERATURE
    logits -= jax.lax.stop_gradient(logits.max(1, keepdims=True))
    log_p = logits - jnp.log(jnp.exp(logits).sum(1, keepdims=True) + RANK_EPSILON)
    rank = jnp.arange(1, NUM_RANKS + 1)[:, None, None]
    is_positive = (labels[None] >= rank) & valid[None]  # [rank, B, L]
    of_clips = jnp.where(is_positive, log_p[None, :, : score.shape[1]], 0).sum(2)
    mean = of_clips / (is_positive.sum(2) + RANK_EPSILON)
    return -mean.mean(1).sum() / RANK_DIVISOR
