"""SAM2's attention: projections to an inner width, and axial rotary positions.

    out = W_o softmax(R(W_q q) R(W_k k)' / sqrt(c)) W_v v

R rotates the channel pairs (2j, 2j + 1) of a head by an angle per token (RoPE). On a map, angles
grow with the column in the first half of the pairs and with the row in the second half, at
frequencies 10000^(-4i/c).
Source: facebookresearch/sam2, sam2/modeling/sam/transformer.py and position_encoding.py.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from avs_jax.models.attention import split_heads
from avs_jax.models.layers import Linear
from avs_jax.ops.attention import map_attention

Array = jax.Array

THETA = 10000.0


class ProjectedAttention(nn.Module):
    """Attention of `num_heads` heads in `inner_dim` channels; the output has the query's width."""

    num_heads: int
    inner_dim: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        query: Array,
        key: Array,
        value: Array,
        masked: Array | None = None,
        angles: np.ndarray | None = None,
        num_unrotated: int = 0,
    ) -> Array:
        """query [N, Q, C], key and value [N, S, *] -> [N, Q, C].

        Args:
          masked: bool [N, S], True where no query must look.
          angles: [Q, c / 2] of RoPE; they repeat along the keys.
          num_unrotated: last keys that are not rotated.
        """

        def project(x, name):
            x = Linear(self.inner_dim, dtype=self.dtype, name=name)(x)
            return split_heads(x, self.num_heads)

        q, k = project(query, "q_proj"), project(key, "k_proj")
        # The weights of a head sum to 1, so values narrower than it can be projected afterward.
        projects_late = self.num_heads == 1 and value.shape[-1] < self.inner_dim
        v = value[:, :, None].astype(self.dtype) if projects_late else project(value, "v_proj")
        if angles is not None:
            end = k.shape[1] - num_unrotated
            q = rotate(q, angles)
            k = jnp.concatenate([rotate(k[:, :end], angles), k[:, end:]], axis=1)
        out = map_attention(q, k, v, None if masked is None else masked[:, None, None])
        out = out.reshape(*out.shape[:2], -1)
        if projects_late:
            out = Linear(self.inner_dim, dtype=self.dtype, name="v_proj")(out)
        return Linear(query.shape[-1], dtype=self.dtype, name="out_proj")(out)


def axial_angles(height: int, width: int, channels: int) -> np.ndarray:
    """float64 [height * width, channels / 2]: angles of RoPE, row by row."""
    frequencies = THETA ** (-np.arange(0, channels, 4) / channels)
    rows, columns = np.divmod(np.arange(height * width), width)
    return np.concatenate([np.outer(columns, frequencies), np.outer(rows, frequencies)], axis=1)


def rotate(x: Array, angles: np.ndarray) -> Array:
    """Rotates the pairs of adjacent channels of [N, R L, G, c] by angles [L, c / 2], in float32."""
    cos, sin = (f(angles).astype(np.float32)[None, None, :, None] for f in (np.cos, np.sin))
    pairs = x.astype(jnp.float32).reshape(
        x.shape[0], -1, len(angles), *x.shape[2:3], cos.shape[-1], 2
    )
    shape = pairs.shape[:-1]
    cos, sin = jnp.broadcast_to(cos, shape), jnp.broadcast_to(sin, shape)
    a, b = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([a * cos - b * sin, a * sin + b * cos], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)
