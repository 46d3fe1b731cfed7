"""Frames folded into the batch axis and back, n = b * T + t: the one place that does it."""

import jax
from einops import rearrange, repeat


def fold_frames(x: jax.Array) -> jax.Array:
    """[B, T, ...] -> [B * T, ...]."""
    return rearrange(x, "b t ... -> (b t) ...")


def unfold_frames(x: jax.Array, num_frames: int) -> jax.Array:
    """[B * T, ...] -> [B, T, ...], T = num_frames."""
    return rearrange(x, "(b t) ... -> b t ...", t=num_frames)


def repeat_clips(x: jax.Array, num_frames: int, count: int) -> jax.Array:
    """[B * T, ...] -> [B * count * T, ...], T = num_frames: `count` copies of a clip in a row."""
    return repeat(x, "(b t) ... -> (b count t) ...", t=num_frames, count=count)
