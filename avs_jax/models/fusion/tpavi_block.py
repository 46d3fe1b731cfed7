"""Temporal pixel-wise audio-visual interaction (TPAVI): every pixel of a clip attends to a clip.

    z = LayerNorm(x + BatchNorm(W y))        y_i = sum_j a_ij g(x_j)

i runs over the T * h * w positions of a clip. Values g always come from vision. The positions j
are the T sounds with audio (a sound stands for every pixel of its frame, so its value is the
frame's mean), else the T * h * w pixels. With queries theta(x) and keys phi(audio or x):

    dot          a_ij = theta_i . phi_j / n                 n positions j, no softmax
    embedded     a_ij = softmax_j(theta_i . phi_j)          not scaled
    gaussian     a_ij = softmax_j(x_i . key_j)              x and the projected audio themselves
    concatenate  a_ij = relu(W_f [theta_i, phi_j]) / n

Source: Zhou et al., ECCV 2022 and IJCV 2024; OpenNLPLab/AVSBench, avs_*/model/TPAVI.py.
The original builds the [T h w, T h w] matrix; here `dot` over pixels is two products of [C, C]
size, sounds are T keys, and the other modes go through the queries in chunks that the backward pass
recomputes. Padded frames are no position j and leave n, where the original counts them; its groups
of frames are all real or all padded, so no real frame differs.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.models.layers import BatchNorm, LayerNorm, Linear, torch_uniform

MODES = ("gaussian", "embedded", "dot", "concatenate")
CHUNK_SIZE = 2**23  # scores of a clip that exist at once

Array = jax.Array


class TPAVIBlock(nn.Module):
    """One block, whose calls with and without audio share their parameters.

    Attributes:
      mode: one of MODES.
      audio_bias: the audio projection has a bias.
      dtype: of compute; parameters, scores and norms are float32.
    """

    mode: str = "dot"
    audio_bias: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Array, audio: Array, counted: Array, *, use_audio: bool, train: bool = False
    ) -> tuple[Array, dict[str, Array]]:
        """Lets a clip's pixels attend to its sounds, or to each other.

        Args:
          x: [B, T, h, w, C].
          audio: [B, T, A].
          counted: bool [B, T], the frames that are attended to and enter the statistics.
          use_audio: keys come from the audio; it has parameters either way.
          train: use and record the statistics of the batch.

        Returns:
          [B, T, h, w, C]; and {"audio": [B, T, C], the projection, "y": [B, T, h, w, C // 2],
          "W_y": [B, T, h, w, C], what the norm adds to x}.
        """
        b, t, h, w, channels = x.shape
        inner = max(channels // 2, 1)
        audio = Linear(channels, self.audio_bias, dtype=self.dtype, name="align_channel")(audio)
        pixels = x.reshape(b, t * h * w, channels)
        value = Linear(inner, dtype=self.dtype, name="g")(x)
        if use_audio:
            wide = jnp.promote_types(self.dtype, jnp.float32)
            key, value, weight = audio, value.mean((2, 3), dtype=wide), counted
        else:
            key, value = pixels, value.reshape(b, t * h * w, inner)
            weight = jnp.broadcast_to(counted[:, :, None], (b, t, h * w)).reshape(b, -1)
        query = pixels
        if self.mode != "gaussian":
            query = Linear(inner, dtype=self.dtype, name="theta")(query)
            key = Linear(inner, dtype=self.dtype, name="phi")(key)
        if self.mode == "concatenate":
            query, key = PairScore(name="W_f_0")(query, key)
        y = attend(self.mode, query, key, value, weight)
        y = y.astype(self.dtype).reshape(b, t, h, w, inner)
        update = Linear(channels, dtype=self.dtype, name="W_z_0")(y)
        norm = BatchNorm(scale_init=nn.initializers.zeros, name="W_z_1")
        folded = update.reshape(b * t, h, w, channels)
        update = norm(folded, train=train, valid=counted.reshape(-1)).reshape(x.shape)
        out = LayerNorm(name="norm_layer")(x + update)
        return out, {"audio": audio, "y": y, "W_y": update}


class PairScore(nn.Module):
    """A linear map of [query, key] to one number, as a product of two vectors per pair.

    [B, Q, c], [B, S, c] -> [B, Q, 2], [B, S, 2], whose inner products are the scores.
    """

    @nn.compact
    def __call__(self, query: Array, key: Array) -> tuple[Array, Array]:
        width = query.shape[-1]
        default = torch_uniform(2 * width)
        kernel = self.param("kernel", default, (2 * width, 1))
        bias = self.param("bias", default, (1,))
        of_query = query @ kernel[:width] + bias[None, None]
        of_key = key @ kernel[width:]
        return (
            jnp.concatenate([of_query, jnp.ones_like(of_query)], -1),
            jnp.concatenate([jnp.ones_like(of_key), of_key], -1),
        )


def attend(mode: str, query: Array, key: Array, value: Array, counted: Array) -> Array:
    """What each query receives, by the rule of `mode`.

    Args:
      mode: one of MODES.
      query: [B, Q, c].
      key: [B, S, c].
      value: [B, S, d].
      counted: bool [B, S], the positions that are attended to. Where a clip has none, the result
        means nothing.

    Returns:
      float32 [B, Q, d].
    """
    wide = jnp.promote_types(query.dtype, jnp.float32)
    share = counted / jnp.maximum(counted.sum(1, dtype=wide), 1)[:, None]
    if mode == "dot" and key.shape[1] > key.shape[2]:
        weighted = value.astype(wide) * share[:, :, None]
        context = jnp.einsum("bsc,bsd->bcd", key.astype(wide), weighted)
        return jnp.einsum("bqc,bcd->bqd", query.astype(wide), context)

    @jax.checkpoint
    def attend_from(query):
        scores = jnp.einsum("bqc,bsc->bqs", query, key, preferred_element_type=wide)
        if mode in ("gaussian", "embedded"):
            scores = jnp.where(counted[:, None], scores, jnp.finfo(wide).min)
            weights = jax.nn.softmax(scores, axis=-1)
        else:
            weights = nn.relu(scores) if mode == "concatenate" else scores
            weights = weights * share[:, None]
        return jnp.einsum("bqs,bsd->bqd", weights, value.astype(wide))

    (b, num_queries, width), chunk = query.shape, max(CHUNK_SIZE // key.shape[1], 1)
    if num_queries <= chunk:
        return attend_from(query)
    count = -(-num_queries // chunk)
    query = jnp.pad(query, ((0, 0), (0, count * chunk - num_queries), (0, 0)))
    chunks = jnp.moveaxis(query.reshape(b, count, chunk, width), 1, 0)
    y = jnp.moveaxis(jax.lax.map(attend_from, chunks), 0, 1)
    return y.reshape(b, count * chunk, -1)[:, :num_queries]
