"""Prototype-prompted query generation (PPQG): the decoder's queries, generated from the image.

  x  = conv1x1(ReLU(conv3x3(ReLU(conv1x1(mask_features)))))          [N, S, D], S = h w pixels
  x  = x (1 + lambda M)                                              with a motion map (AMA)
  q0 = MLP over the pixels of each channel, S -> D -> D -> Q
  q1 = LN(q0 + MHA(q0, prototypes, prototypes))                      q0 without prototypes (MS3)
  P  = softmax over the queries of (Wq q1)(Wk x)^T / sqrt(D) [+ Gumbel noise in training]
  A  = onehot(argmax P) forward, dP backward;  A_q <- A_q / (sum_s A_qs + 1)
  q2 = q1 + Wo (A Wv x)

Source: VCT (Huang et al., CVPR 2025), section 3.2, with GroupViT's assignment (Xu et al., CVPR
2022); written from these formulas. The linear map over pixels fixes the input size.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.models.layers import MLP, Conv, Embedding, LayerNorm, Linear, MultiheadAttention
from avs_jax.spec import InputError

PROTOTYPE_HEADS = 4


def reweight(x: jax.Array, motion_weight: jax.Array, strength: jax.Array) -> jax.Array:
    """Amplifies features where motion matches sound: x (1 + strength M), in the dtype of x.

    x is [N, h, w, D], M [N, h, w] in 0..1 and `strength` the learned scalar lambda. x is unchanged,
    bit for bit, where strength or M is 0.
    """
    return x * (1 + strength * motion_weight[..., None]).astype(x.dtype)


def hard_assignment(logits: jax.Array) -> jax.Array:
    """One-hot argmax over queries with the gradient of the softmax (straight-through estimator).

    float32 [N, Q, S] -> [N, Q, S], 0 or 1 up to rounding (1 - p + p).
    """
    soft = nn.softmax(logits, axis=1)
    winner = jnp.argmax(soft, axis=1)
    hard = nn.one_hot(winner, logits.shape[1], axis=1, dtype=soft.dtype)
    return jax.lax.stop_gradient(hard - soft) + soft


class AssignAttention(nn.Module):
    """Assigns every pixel's value to one query; a query gets sum / (count + 1)."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, query: jax.Array, pixels: jax.Array, gumbel_noise: jax.Array | None
    ) -> tuple[jax.Array, dict]:
        """query [N, Q, D], pixels [N, S, D], noise [N, Q, S] to [N, Q, D] and intermediates."""
        width = query.shape[-1]
        q = Linear(width, dtype=self.dtype, name="q_proj")(query)
        k = Linear(width, dtype=self.dtype, name="k_proj")(pixels)
        v = Linear(width, dtype=self.dtype, name="v_proj")(pixels)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        scores = jnp.einsum("nqc,nsc->nqs", q, k, preferred_element_type=wide) * width**-0.5
        noisy = scores if gumbel_noise is None else scores + gumbel_noise
        assigned = hard_assignment(noisy)
        share = assigned / (assigned.sum(-1, keepdims=True) + 1)
        taken = jnp.einsum("nqs,nsc->nqc", share.astype(self.dtype), v)
        out = Linear(width, dtype=self.dtype, name="proj")(taken)
        return out, {
            "raw_attn": scores,
            "hard_attn": assigned,
            "assign_index": jnp.argmax(noisy, axis=1),
            "assign_attn_out": out,
        }


class PrototypeAttention(nn.Module):
    """Queries attend to the prototypes without positions: LN(q + MHA(q, p, p))."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, query: jax.Array, prototypes: jax.Array) -> jax.Array:
        """query [N, Q, D], prototypes [N, K', D]."""
        attend = MultiheadAttention(PROTOTYPE_HEADS, self.dtype, name="multihead_attn")
        return LayerNorm(name="norm")(query + attend(query, prototypes, prototypes))


class PPQG(nn.Module):
    """Queries from mask features, per frame; 0 prototypes are none.

    The motion strength, parameter `lambda` [1], exists only with a motion map.
    """

    num_queries: int
    num_prototypes: int
    lambda_init: float = 1.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        mask_features: jax.Array,
        motion_weight: jax.Array | None = None,
        gumbel_noise: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array | None, dict]:
        """Queries [N, Q, D]; the prototype table [K', D] or None; intermediates.

        Args:
          mask_features: [N, h, w, D].
          motion_weight: [N, h, w], or None.
          gumbel_noise: [N, Q, h w] added to the assignment scores, or None.
        """
        num_frames, height, width, channels = mask_features.shape
        x = Linear(channels, dtype=self.dtype, name="pre_proj_0")(mask_features)
        x = Conv(channels, 3, dtype=self.dtype, name="pre_proj_2")(nn.relu(x))
        x = Linear(channels, dtype=self.dtype, name="pre_proj_4")(nn.relu(x))
        intermediates = {"pre_proj": x}
        if motion_weight is not None:
            strength = self.param("lambda", nn.initializers.constant(self.lambda_init), (1,))
            x = reweight(x, motion_weight, strength[0])
            intermediates["reweighted"] = x
        pixels = x.reshape(num_frames, height * width, channels)

        self._check_size(height, width)
        mixer = MLP((channels, channels, self.num_queries), self.dtype, name="query_mixer")
        mixed = mixer(jnp.swapaxes(pixels, 1, 2))
        queries = jnp.swapaxes(mixed, 1, 2)
        prototypes = None
        if self.num_prototypes:
            prototypes = Embedding(self.num_prototypes, channels, name="prototype")()
            spread = jnp.broadcast_to(prototypes, (num_frames, *prototypes.shape))
            queries = PrototypeAttention(self.dtype, name="pre_attn")(queries, spread)
            intermediates["pre_attn"] = queries
        assign = AssignAttention(self.dtype, name="assign_attn")
        taken, assigned = assign(queries, pixels, gumbel_noise)
        queries += taken
        intermediates |= assigned | {"query_mixer": mixed, "queries": queries}
        return queries, prototypes, intermediates

    def _check_size(self, height: int, width: int) -> None:
        """The mixer's kernel has a row per pixel; a clearer error than Flax's."""
        if not self.has_variable("params", "query_mixer"):
            return
        made_for = self.variables["params"]["query_mixer"]["layers_0"]["kernel"].shape[0]
        if made_for != height * width:
            side = made_for**0.5
            square = f", e.g. images of {4 * side:.0f} x {4 * side:.0f} px" if side % 1 == 0 else ""
            raise InputError(
                f"PPQG: mask features are {height} x {width} = {height * width} pixels, but the "
                f"query mixer's parameters are for {made_for}{square}; the images must have the "
                "size that the parameters were made for"
            )
