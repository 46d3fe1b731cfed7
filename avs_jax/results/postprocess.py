"""From a model's queries to a score for each class at each pixel.

  sem_seg[c] = sum_q softmax(pred_logits[q])[c] * sigmoid(upsample(pred_masks[q]))     (without "no
  object"), cropped to the image, then resized to the score size

The sum is not normalized: values can reach the number of queries. The order matters (upsample,
sigmoid, combine, crop, resize). Source: Mask2Former's `semantic_inference`; VCT
`models/vct_model.py` lines 410-460, whose score size is 224 x 224 for images of any shape.
"""

import jax
import jax.numpy as jnp

from avs_jax.ops.sampling import resize_bilinear
from avs_jax.spec import check_shape


def sem_seg(
    pred_logits: jax.Array,
    pred_masks: jax.Array,
    padded_size: tuple[int, int],
    image_size: tuple[int, int],
    score_size: int | tuple[int, int],
    valid: jax.Array | None = None,
) -> jax.Array:
    """Combines the queries of each frame into class scores, float32 [N, *score_size, K].

    Frames are computed one at a time, so the memory needed is that of one frame's masks at full
    size (padded H * W * Q floats).

    Args:
      pred_logits: [N, Q, K+1], "no object" last.
      pred_masks: [N, h, w, Q] logits.
      padded_size: (H, W) of the model's input; the image of image_size (H, W) is at its top left.
      score_size: (h, w) of the result; one number means a square.
      valid: bool [N]; the scores of other frames are zero. All frames by default.
    """
    sizes = check_shape("pred_masks", pred_masks, "N h w Q")
    check_shape("pred_logits", pred_logits, "N Q K", N=sizes["N"], Q=sizes["Q"])
    if isinstance(score_size, int):
        score_size = (score_size, score_size)
    if any(size > padded for size, padded in zip(image_size, padded_size, strict=True)):
        raise ValueError(f"image_size {image_size} exceeds the padded input {padded_size}")

    def frame(inputs):
        logits, masks = inputs
        classes = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)[:, :-1]
        masks = jax.nn.sigmoid(resize_bilinear(masks.astype(jnp.float32), padded_size))
        scores = jnp.einsum("hwq,qk->hwk", masks, classes, precision=jax.lax.Precision.HIGHEST)
        return resize_bilinear(scores[: image_size[0], : image_size[1]], score_size)

    scores = jax.lax.map(frame, (pred_logits, pred_masks))
    return scores if valid is None else jnp.where(valid[:, None, None, None], scores, 0.0)


def object_probability(scores: jax.Array) -> jax.Array:
    """Softmax over the binary task's two class scores, [..., 2] -> [...]: p of the object."""
    if scores.shape[-1] != 2:
        raise ValueError(f"scores: {scores.shape[-1]} classes; a probability needs exactly 2")
    return jax.nn.sigmoid(scores[..., 1] - scores[..., 0])
