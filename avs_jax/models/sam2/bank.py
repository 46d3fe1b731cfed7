"""The memory bank of tracking: a fixed number of slots, so a video never changes a program.

A *prompted* frame stays in the bank. Of the other frames, a ring keeps the latest: frame t has slot
t mod size, and a slot counts only if it holds the frame to recall. Frame t attends to

- the maps of prompted frames (all, or the `max_prompted` closest ones), and those of the
  `num_maps` - 1 frames before t: t - 1, then every `stride`-th;
- the pointers of the same prompted frames, unless they come later, and of the frames before t, up
  to min(16, frames of the video) - 1 of them.

A prompted frame that is not among the closest ones counts as any other frame. Source:
facebookresearch/sam2, _prepare_memory_conditioned_features in sam2/modeling/sam2_base.py. Tracking
backward is tracking the reversed frames.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from avs_jax.ops.rows import where_rows

Array = jax.Array

EMPTY = -(1 << 20)  # frame of an empty slot
LONG_VIDEO = 1 << 20  # frames, where the number is unknown


class Memory(NamedTuple):
    """What a frame leaves for M objects: its map [M, h, w, Dm] and pointer [M, D]."""

    map: Array
    pointer: Array


class Bank(NamedTuple):
    """Slots of M objects.

    Attributes:
      prompted: Memory with maps [M, K, h, w, Dm] and pointers [M, K, D] of prompted frames.
      prompted_frames: int32 [M, K], EMPTY where free.
      maps: [M, R, h, w, Dm], of the latest other frames; map_frames: int32 [M, R].
      pointers: [M, P, D], likewise; pointer_frames: int32 [M, P].
    """

    prompted: Memory
    prompted_frames: Array
    maps: Array
    map_frames: Array
    pointers: Array
    pointer_frames: Array


class Recalled(NamedTuple):
    """What frame t attends to.

    Attributes:
      maps: [M, S, h, w, Dm]; map_ages: int32 [M, S], row of the table of temporal positions;
        has_map: bool [M, S].
      pointers: [M, P, D]; pointer_steps: int32 [M, P], frames since; has_pointer: bool [M, P].
    """

    maps: Array
    map_ages: Array
    has_map: Array
    pointers: Array
    pointer_steps: Array
    has_pointer: Array


def empty_bank(
    memory: Memory, num_prompted: int, num_maps: int, num_pointers: int, stride: int = 1
) -> Bank:
    """A bank for memories of these shapes.

    Args:
      num_prompted: K.
      num_maps: maps of the latest frames plus one, 7 in SAM2.
      num_pointers: pointers of the latest frames plus one, 16 in SAM2.
    """
    count = memory.map.shape[0]

    def slots(x, number):
        return jnp.zeros((count, number, *x.shape[1:]), x.dtype)

    def frames(number):
        return jnp.full((count, number), EMPTY, jnp.int32)

    ring = max((num_maps - 2) * stride + 1, 1)
    ends = max(num_pointers - 1, 1)
    return Bank(
        Memory(slots(memory.map, num_prompted), slots(memory.pointer, num_prompted)),
        frames(num_prompted),
        slots(memory.map, ring),
        frames(ring),
        slots(memory.pointer, ends),
        frames(ends),
    )


def remember(bank: Bank, memory: Memory, frame: Array, is_new: Array) -> Bank:
    """Stores a frame that was tracked, for the objects with is_new, bool [M]."""

    def put(slots, value):
        at = jnp.mod(frame, slots.shape[1])
        return slots.at[:, at].set(where_rows(is_new, value.astype(slots.dtype), slots[:, at]))

    frames = jnp.full(is_new.shape, frame, jnp.int32)
    return bank._replace(
        maps=put(bank.maps, memory.map),
        map_frames=put(bank.map_frames, frames),
        pointers=put(bank.pointers, memory.pointer),
        pointer_frames=put(bank.pointer_frames, frames),
    )


def remember_prompted(bank: Bank, memory: Memory, frame: Array, is_new: Array) -> Bank:
    """Stores a prompted frame of the objects with is_new, in their first free slot."""
    at = jnp.argmax(bank.prompted_frames == EMPTY, axis=1)
    here = (jnp.arange(bank.prompted_frames.shape[1])[None] == at[:, None]) & is_new[:, None]

    def put(slots, value):
        where = here.reshape(*here.shape, *(1,) * (value.ndim - 1))
        return jnp.where(where, value[:, None].astype(slots.dtype), slots)

    return bank._replace(
        prompted=Memory(*(put(*pair) for pair in zip(bank.prompted, memory, strict=True))),
        prompted_frames=jnp.where(here, frame, bank.prompted_frames),
    )


def recall(
    bank: Bank,
    frame: Array,
    num_frames: Array,
    num_maps: int,
    num_pointers: int,
    stride: int = 1,
    max_prompted: int = 0,
) -> Recalled:
    """What frame `frame` of a video of `num_frames` attends to; the numbers are `empty_bank`'s."""
    is_close = closest(bank.prompted_frames, frame, max_prompted)
    is_far = (bank.prompted_frames != EMPTY) & ~is_close

    def find(frames, slots, far_slots, wanted):
        """Slots of the wanted frames [W], in the ring or among the far prompted frames."""
        at = jnp.mod(wanted, frames.shape[1])
        found = frames[:, at] == wanted[None]
        value = slots[:, at]
        match = (bank.prompted_frames[:, None] == wanted[None, :, None]) & is_far[:, None]
        other = jnp.take_along_axis(
            far_slots, match.argmax(-1).reshape(*found.shape, *(1,) * (slots.ndim - 2)), axis=1
        )
        is_other = match.any(-1)
        where = is_other.reshape(*found.shape, *(1,) * (slots.ndim - 2))
        return jnp.where(where, other, value), found | is_other

    steps = jnp.arange(2, num_maps)  # frames back, 1 aside
    spaced = (frame - 2) // stride * stride - (steps - 2) * stride
    wanted = jnp.concatenate([jnp.asarray(frame - 1).reshape(1), spaced])
    maps, has_map = find(bank.map_frames, bank.maps, bank.prompted.map, wanted)
    ages = jnp.concatenate(
        [jnp.full(bank.prompted_frames.shape[1:], num_maps - 1), jnp.arange(num_maps - 1)]
    )

    back = jnp.arange(1, num_pointers)
    pointers, has_pointer = find(
        bank.pointer_frames, bank.pointers, bank.prompted.pointer, frame - back
    )
    has_pointer &= (back < num_frames)[None]
    since = frame - bank.prompted_frames
    return Recalled(
        jnp.concatenate([bank.prompted.map, maps], axis=1),
        jnp.broadcast_to(ages[None], (maps.shape[0], len(ages))),
        jnp.concatenate([is_close, has_map], axis=1),
        jnp.concatenate([bank.prompted.pointer, pointers], axis=1),
        jnp.concatenate([since, jnp.broadcast_to(back[None], has_pointer.shape)], axis=1),
        jnp.concatenate([is_close & (since >= 0), has_pointer], axis=1),
    )


def closest(frames: Array, frame: Array, count: int) -> Array:
    """Which prompted frames are attended to as such: bool, the shape of frames [M, K].

    All if `count` is 0; else `count`: the last one before `frame`, the first one from `frame` on,
    then those with the least distance, the earlier slot first.
    """
    is_used = frames != EMPTY
    if count == 0:
        return is_used
    distance = jnp.abs(frames - frame)
    before, after = is_used & (frames < frame), is_used & (frames >= frame)
    latest = jnp.where(before, frames, EMPTY).max(1, keepdims=True)
    far = -EMPTY
    earliest = jnp.where(after, frames, far).min(1, keepdims=True)
    is_next = (before & (frames == latest)) | (after & (frames == earliest))
    rank = jnp.where(is_next, -1, jnp.where(is_used, distance, far))
    order = jnp.argsort(jnp.argsort(rank, axis=1, stable=True), axis=1)
    return is_used & (order < count)
