"""Tracking through a clip that is in memory: all frames in one program.

Prompted frames come first, so that every frame can attend to them, earlier ones too. Then frames
are tracked in order, from the first prompted one on; an object is not visible before that. Source:
facebookresearch/sam2, propagate_in_video in sam2/sam2_video_predictor.py.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from avs_jax.models.sam2.bank import remember, remember_prompted
from avs_jax.models.sam2.neck import ImageFeatures
from avs_jax.ops.rows import where_rows
from avs_jax.spec import ABSENT_POINT

NO_OBJECT = -1024.0  # logits of an object that is not visible

Array = jax.Array


class Segments(NamedTuple):
    """Masks and scores of N objects in a frame.

    Attributes:
      low_res_mask: float32 logits [N, H / 4, W / 4], NO_OBJECT everywhere if it is not visible.
      iou: float32 [N], predicted.
      object_score_logits: float32 [N, 1], above 0 if it is visible.
      obj_ptr: [N, D].
    """

    low_res_mask: Array
    iou: Array
    object_score_logits: Array
    obj_ptr: Array


def track_clip(
    apply: Callable[..., Any], clip: Mapping[str, Array], num_slots: int
) -> dict[str, Array]:
    """Tracks M objects through T frames.

    Args:
      apply: (name of a method of SAM2, *args) -> its result.
      clip: pixels [T, H, W, 3], points [T, M, P, 2], point_labels [T, M, P], masks [T, M, H, W],
        mask_given [T, M].
      num_slots: the most frames with prompts.

    Returns:
      low_res_mask float32 [T, M, H / 4, W / 4], iou [T, M], object_score_logits [T, M, 1] and
      obj_ptr [T, M, D].
    """
    num_frames, num_objects = clip["mask_given"].shape
    num_slots = min(num_slots, num_frames)
    features = jax.lax.map(lambda image: apply("encode_images", image[None]), clip["pixels"])
    is_given = (clip["point_labels"] != ABSENT_POINT).any(-1) | clip["mask_given"]
    is_prompted = is_given.any(1)
    first = jnp.argmax(is_prompted)
    order = jnp.argsort(~is_prompted, stable=True)[:num_slots]

    def frame_features(frame):
        return spread(jax.tree.map(lambda x: x[frame], features), num_objects)

    def start(frame):
        prompt = (clip[name][frame] for name in ("points", "point_labels", "masks", "mask_given"))
        points, labels, masks, has_mask = prompt
        return apply("start", frame_features(frame), points, labels, masks > 0, has_mask)

    started, memories = jax.lax.map(start, order)
    bank = apply("new_bank", jax.tree.map(lambda x: x[0], memories), num_slots)

    def store(bank, memory_and_frame):
        memory, frame = memory_and_frame
        return remember_prompted(bank, memory, frame, is_given[frame]), None

    bank, _ = jax.lax.scan(store, bank, (memories, order))

    def follow(bank, frame):
        found, memory = apply("follow", frame_features(frame), bank, frame, num_frames)
        slot = jnp.argmax(order == frame)
        given = jax.tree.map(lambda x: x[slot], started)
        found = jax.tree.map(lambda a, b: where_rows(is_given[frame], a, b), given, found)
        is_late = jnp.broadcast_to(frame >= first, (num_objects,))
        bank = remember(bank, memory, frame, is_late & ~is_given[frame])
        return bank, hide(found, is_late)

    _, segments = jax.lax.scan(follow, bank, jnp.arange(num_frames))
    return segments._asdict()


def spread(features: ImageFeatures, num_objects: int) -> ImageFeatures:
    """The features of one image for several objects: [1, ...] -> [M, ...]."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (num_objects, *x.shape[1:])), features)


def hide(segments: Segments, is_shown: Array) -> Segments:
    """Objects without is_shown, bool [M], are not visible."""
    return segments._replace(
        low_res_mask=where_rows(is_shown, segments.low_res_mask, NO_OBJECT),
        object_score_logits=where_rows(is_shown, segments.object_score_logits, NO_OBJECT),
    )
