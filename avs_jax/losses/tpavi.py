"""The loss of AVSBench's baselines: the pixels' classes, and audio against masked vision.

  loss_seg  two classes: BCE of sigmoid(logit), each log held above -100; more: cross entropy.
            Mean over a frame's labeled pixels, then over the supervised frames.
  loss_av   av.weight * mean over av.stages of a distance between a frame's projected audio a and
            its masked visual feature v, both [C], of that stage.

What v is and what it is compared with, by `av.kind`; m is a soft mask at the size of the stage, the
object's or of every class but background, "hard" m > 0.5, f the stage's map:

  none      there is no loss_av
  cosine    hard pool(sigmoid(logit)); v = sum(m f) / (sum(m) + 1e-6)
            -log(relu(cos(a, v)) + 1e-6)
  masked    m = sigmoid(pool(logit)), or pool(argmax is not background), which has no gradient;
            v = mean(m f), or with `threshold` as of cosine; a and v by `distance`
  neighbor  v as of masked without threshold, compared with the v of the frame of the batch whose
            audio is nearest

`distance` is "euclidean", |a - v + 1e-6|, or "kl", KL(softmax(a) || softmax(v)); `normalize` makes
a and v unit length first. Distances are averaged over the frames of `frames`, "supervised" or
"valid"; `reduction` = "sum" adds up those of "kl" instead, as MS3 does, so the term grows with the
batch.

Source: Zhou et al., ECCV 2022 and IJCV 2024; OpenNLPLab/AVSBench, avs_*/loss.py. Fixed here: a
logit beyond 17 of the wrong sign has its own loss and a gradient (there, 100 and none); KL is
finite where a softmax underflows; a neighbor is another frame and a valid one, whatever the
distances (there, a frame itself where all others are 10 away); for 71 classes the neighbor's KL
compares with the neighbor (there, with the frame's own audio); pixels of the image that have no
label count for nothing. No published number rests on any of these but the first, for which it is a
matter of logits that training hardly reaches.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from avs_jax.ops.frames import fold_frames
from avs_jax.spec import InputError

KINDS = ("none", "cosine", "masked", "neighbor")
CHOICES = {
    "kind": KINDS,
    "distance": ("kl", "euclidean"),
    "mask_pooling": ("avg", "max"),
    "reduction": ("mean", "sum"),
    "frames": ("supervised", "valid"),
}
MAX_LOSS = 100.0  # of a pixel's BCE

Array = jax.Array


def loss_norms(batch: Mapping[str, Array], loss_config: Any) -> dict[str, Array]:
    """What the terms of a batch are divided by, from its targets alone: {term: float32 []}.

    Terms of micro-batches, divided by those of the whole batch, add up to the whole batch's.
    """
    config, supervised = loss_config.av, batch["supervised"]
    valid = batch.get("valid", jnp.ones_like(supervised))
    counts = valid if config.frames == "valid" else supervised & valid
    is_sum = config.kind != "cosine" and config.distance == "kl" and config.reduction == "sum"
    frames = jnp.maximum(supervised.sum(), 1).astype(jnp.float32)
    av_frames = jnp.maximum(counts.sum(), 1).astype(jnp.float32)
    return {"loss_seg": frames, "loss_av": jnp.ones_like(frames) if is_sum else av_frames}


def compute_losses(
    outputs: Mapping[str, Any],
    batch: Mapping[str, Array],
    key: Array,
    norms: Mapping[str, Array] | None = None,
    *,
    loss_config: Any,
) -> tuple[Array, dict[str, Array]]:
    """The loss of a batch, or a micro-batch's part of it.

    Args:
      outputs: of models.tpavi.TPAVI; reads pred_masks and, for loss_av, intermediates' feature_maps
        and audio_features.
      batch: target_masks, target_labels, target_valid, supervised and valid (absent: all).
      key: not read; nothing is drawn.
      norms: of the whole batch, where this is a part of it; None: this is all.
      loss_config: config.loss; reads `av`.

    Returns:
      float32 [], the sum of the terms; and the terms, weighted: loss_seg and, unless av.kind is
      "none", loss_av.

    Raises:
      InputError: a value of loss.av that cannot be, a stage that has no audio, or a micro-batch
        under the kind "neighbor", whose frames would lack the others.
    """
    del key
    config = loss_config.av
    _check(config, outputs)
    if norms is not None and config.kind == "neighbor":
        raise InputError(
            "loss.av.kind = 'neighbor' compares the frames of a batch with each other: "
            "config.train.accumulate must be 1"
        )
    norms = loss_norms(batch, loss_config) if norms is None else norms
    logits = fold_frames(outputs["pred_masks"]).astype(jnp.float32)
    names = ("target_masks", "target_labels", "target_valid", "supervised")
    frames = {name: fold_frames(batch[name]) for name in names}
    supervised = frames["supervised"]
    per_frame = _pixel_loss(logits, frames)
    terms = {"loss_seg": jnp.where(supervised, per_frame, 0).sum() / norms["loss_seg"]}
    if config.kind != "none":
        valid = fold_frames(batch["valid"]) if "valid" in batch else jnp.ones_like(supervised)
        counts = valid if config.frames == "valid" else supervised & valid
        seen, total = outputs["intermediates"], 0.0
        for stage in config.stages:
            features, audio = (
                fold_frames(seen[name][stage]).astype(jnp.float32)
                for name in ("feature_maps", "audio_features")
            )
            per_frame = _audio_visual_loss(logits, features, audio, valid, config)
            total += jnp.where(counts, per_frame, 0).sum()
        terms["loss_av"] = config.weight * total / (len(config.stages) * norms["loss_av"])
    return sum(terms.values()), terms


def _check(config: Any, outputs: Mapping[str, Any]) -> None:
    for name, choices in CHOICES.items():
        if config[name] not in choices:
            raise InputError(f"loss.av.{name} = {config[name]!r}: choose one of {choices}")
    if config.kind == "none":
        return
    heard = sorted(outputs["intermediates"]["audio_features"])
    if not config.stages or not set(config.stages) <= set(heard):
        raise InputError(
            f"loss.av.stages = {tuple(config.stages)}: choose some of {heard}, the stages with a "
            "TPAVI block that hears (model.tpavi_stages, tpavi_va), or loss.av.kind = 'none'"
        )


def _pixel_loss(logits: Array, frames: Mapping[str, Array]) -> Array:
    """Mean loss of each frame's labeled pixels: [N, h, w, K'] -> [N]."""
    masks = frames["target_masks"] & frames["target_valid"][:, :, None, None]
    height, width = masks.shape[2:]
    logits, labels = logits[:, :height, :width], frames["target_labels"][:, :, None, None]
    if logits.shape[-1] == 1:
        target = (masks & (labels > 0)).any(1)
        logits = jnp.where(target, -logits[..., 0], logits[..., 0])
        loss = jnp.minimum(jax.nn.softplus(logits), MAX_LOSS)
    else:
        label = jnp.where(masks, labels, 0).max(1)
        chosen = jnp.take_along_axis(logits, label[..., None], axis=-1)[..., 0]
        loss = jax.nn.logsumexp(logits, axis=-1) - chosen
    labeled = masks.any(1)
    count = jnp.maximum(labeled.sum((1, 2)), 1)
    return jnp.where(labeled, loss, 0).sum((1, 2)) / count


def _audio_visual_loss(
    logits: Array, features: Array, audio: Array, valid: Array, config: Any
) -> Array:
    """The distance of each frame at one stage.

    Args:
      logits: float32 [N, H, W, K'].
      features: float32 [N, h, w, C].
      audio: float32 [N, C].
      valid: bool [N], the frames that may be a neighbor.
      config: config.loss.av.

    Returns:
      float32 [N].
    """
    is_hard = config.kind == "cosine" or (config.kind == "masked" and config.threshold)
    mask = _stage_mask(logits, features.shape[1:3], config)
    mask = (mask > 0.5).astype(jnp.float32) if is_hard else mask
    visual = (features * mask[..., None]).sum((1, 2))
    size = mask.sum((1, 2)) + 1e-6 if is_hard else jnp.full(mask.shape[:1], mask[0].size)
    visual /= size[:, None]
    if config.kind == "cosine" or config.normalize:
        audio, visual = _unit(audio), _unit(visual)
    if config.kind == "cosine":
        return -jnp.log(jax.nn.relu((audio * visual).sum(-1)) + 1e-6)
    if config.kind == "neighbor":
        index, has_neighbor = nearest(audio, valid)
        loss = _distance(visual[index], visual, config)
        return jnp.where(has_neighbor, loss, 0)
    return _distance(audio, visual, config)


def _stage_mask(logits: Array, size: tuple[int, int], config: Any) -> Array:
    """Soft mask of what sounds at the size of a stage: [N, H, W, K'] -> float32 [N, h, w]."""
    if logits.shape[-1] > 1:
        return _pool((logits.argmax(-1) != 0).astype(jnp.float32), size, config.mask_pooling)
    logits = logits[..., 0]
    if config.kind == "cosine":
        return _pool(jax.nn.sigmoid(logits), size, config.mask_pooling)
    return jax.nn.sigmoid(_pool(logits, size, config.mask_pooling))


def _pool(x: Array, size: tuple[int, int], kind: str) -> Array:
    """[N, H, W] -> [N, h, w], of cells of equal size."""
    (n, height, width), (h, w) = x.shape, size
    cells = x.reshape(n, h, height // h, w, width // w)
    return cells.mean((2, 4)) if kind == "avg" else cells.max((2, 4))


def _unit(x: Array) -> Array:
    """[N, C] of length 1; zeros stay zeros, with a gradient of zero."""
    square = jnp.square(x).sum(-1, keepdims=True)
    is_zero = square == 0
    length = jnp.maximum(jnp.sqrt(jnp.where(is_zero, 1, square)), 1e-12)
    return x / jnp.broadcast_to(length, x.shape)


def _distance(a: Array, b: Array, config: Any) -> Array:
    """`config.distance` of b from a: [N, C] twice -> [N]."""
    if config.distance == "euclidean":
        return jnp.sqrt(jnp.square(a - b + 1e-6).sum(-1))
    a, b = jax.nn.log_softmax(a), jax.nn.log_softmax(b)
    return (jnp.exp(a) * (a - b)).sum(-1)


def nearest(audio: Array, valid: Array) -> tuple[Array, Array]:
    """The valid frame nearest to each other one: int32 [N], and bool [N], whether there is one."""
    audio = jax.lax.stop_gradient(audio)
    square = jnp.square(audio[:, None] - audio[None]).sum(-1)
    can_be = valid[None] & ~jnp.eye(len(audio), dtype=bool)
    return jnp.where(can_be, square, jnp.inf).argmin(1), can_be.any(1)
