"""What the motion of a cell knows of the other seconds of its clip.

  attention   x_t + W_o MHA(LN x_t over the frames t' of the same cell)
  gru         x_t + W_o [h_t forward ; h_t backward], a convolutional GRU over the grid:
              z, r = sigmoid(conv3x3 [x_t ; h_{t-1}]), n = tanh(conv3x3 [x_t ; r h_{t-1}]),
              h_t = (1 - z) n + z h_{t-1}

W_o starts at zero, so both start as the identity. With `causal`, frame t reads frames up to t only
(the GRU has no backward half), as a stream needs it. Frames that do not exist are neither read nor
remembered.

Source: the AMA authors' notes (see ama.py) propose time-only attention or a ConvGRU over encoded
motion; the form is ours.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.models.layers import Conv, LayerNorm, Linear
from avs_jax.ops.frames import fold_frames, unfold_frames

KINDS = ("none", "attention", "gru")


class TimeAttention(nn.Module):
    """Multi-head attention over the frames of a clip, cell by cell."""

    num_heads: int
    causal: bool
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        """x [B, T, S, E] and valid bool [B, T] to [B, T, S, E]."""
        width, heads = x.shape[-1], self.num_heads
        normed = LayerNorm(name="norm")(x)

        def project(name):
            y = Linear(width, dtype=self.dtype, name=name)(normed)
            return y.reshape(*y.shape[:-1], heads, width // heads)

        q, k, v = project("q_proj"), project("k_proj"), project("v_proj")
        wide = jnp.promote_types(self.dtype, jnp.float32)
        scores = jnp.einsum("btsgc,busgc->bsgtu", q, k, preferred_element_type=wide)
        frames = jnp.arange(x.shape[1])
        read = valid[:, None, :] | jnp.eye(x.shape[1], dtype=bool)[None]  # [B, T, T]
        if self.causal:
            read &= (frames[None] <= frames[:, None])[None]
        scores = jnp.where(read[:, None, None], scores * (width // heads) ** -0.5, -jnp.inf)
        mixed = jnp.einsum("bsgtu,busgc->btsgc", nn.softmax(scores, axis=-1).astype(v.dtype), v)
        zeros = nn.initializers.zeros
        out = Linear(width, kernel_init=zeros, bias_init=zeros, dtype=self.dtype, name="out_proj")
        return x + out(mixed.reshape(x.shape)).astype(x.dtype)


class _Cell(nn.Module):
    """One step of the convolutional GRU."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, state: jax.Array, inputs: tuple[jax.Array, jax.Array]):
        x, valid = inputs  # [B, h, w, E], [B]
        gates = Conv(2 * self.width, 3, dtype=self.dtype, name="gates")
        update, reset = jnp.split(nn.sigmoid(gates(jnp.concatenate([x, state], -1))), 2, axis=-1)
        candidate = Conv(self.width, 3, dtype=self.dtype, name="candidate")
        new = nn.tanh(candidate(jnp.concatenate([x, reset * state], -1)))
        new = (1 - update) * new + update * state
        state = jnp.where(valid[:, None, None, None], new, state)
        return state, state


class MotionGRU(nn.Module):
    """A convolutional GRU over the frames of a clip, forward and, unless causal, backward."""

    causal: bool
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        """x [B, T, S, E], S a square grid, and valid bool [B, T] to [B, T, S, E]."""
        width, side = x.shape[-1], round(x.shape[2] ** 0.5)
        maps = x.reshape(*x.shape[:2], side, side, width).astype(self.dtype)
        scan = nn.scan(
            _Cell, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1
        )
        start = jnp.zeros_like(maps[:, 0])
        _, states = scan(width, self.dtype, name="forward")(start, (maps, valid))
        if not self.causal:
            reverse = maps[:, ::-1], valid[:, ::-1]
            _, backward = scan(width, self.dtype, name="backward")(start, reverse)
            states = jnp.concatenate([states, backward[:, ::-1]], axis=-1)
        zeros = nn.initializers.zeros
        out = Linear(width, kernel_init=zeros, bias_init=zeros, dtype=self.dtype, name="out_proj")
        return x + out(states).reshape(x.shape).astype(x.dtype)


def remember(
    x: jax.Array,
    kind: str,
    num_frames: int,
    valid: jax.Array | None,
    *,
    num_heads: int,
    causal: bool,
    dtype: jnp.dtype,
) -> jax.Array:
    """Encoded motion [N, S, E] with what it knows of its clip; a submodule `memory` of the caller.

    `kind` is one of KINDS; N = clips * num_frames.
    """
    if kind == "none":
        return x
    valid = jnp.ones(x.shape[0], bool) if valid is None else valid
    fields = {"causal": causal, "dtype": dtype, "name": "memory"}
    memory = MotionGRU(**fields) if kind == "gru" else TimeAttention(num_heads, **fields)
    return fold_frames(memory(unfold_frames(x, num_frames), unfold_frames(valid, num_frames)))
