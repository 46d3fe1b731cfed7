"""Swin Transformer (Liu et al., ICCV 2021) as a dense backbone: images to maps of strides 4 to 32.

    z = x + drop_path(W-MSA(LN(x)))     y = z + drop_path(MLP(LN(z)))
    W-MSA = softmax(q k' / sqrt(d) + bias[query - key] + mask) v    shifted windows in odd blocks

This is the detection variant that VCT uses (spyflying/VCT_AVS, models/modeling/backbone/swinb.py).
It departs from the paper's classification network in ways that matter to pretrained weights:

- windows never shrink, and odd blocks always shift, even if the whole map is one window;
- maps are padded to whole windows after the norm and unmasked: through the projection bias, the
  padding takes part as keys and values;
- each of the four outputs has its own norm, but the next stage reads the map without it.

The blocks of a stage run as a scan over (unshifted, shifted) pairs, whose parameters have a leading
axis depth // 2 under `pairs`; an odd depth adds one block, `last`. On XLA:CPU a plain loop takes
1.5 times as long per training step and three times as long to compile.

For the backward pass a block saves its projections and residual sums, ten times its map. It
recomputes norms, GELU, attention scores and softmax, which would take more than twice as much.
"""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from avs_jax.models.backbones.stages import (
    DROP_PATH_RULE,
    FEATURE_LEVELS,
    draw_drop_path,
    heads_rule,
)
from avs_jax.models.layers import LayerNorm, Linear, torch_uniform
from avs_jax.models.rules import STAGES, Config, at_least, per_stage
from avs_jax.ops.attention import softmax_attention
from avs_jax.spec import check_shape

PATCH = 4  # pixels per side of a token of the first stage
MASKED = -100.0  # added to the score of two tokens that only the cyclic shift made neighbors
# Unless a block recomputes everything.
SAVED_FOR_BACKWARD = ("qkv", "attended", "residual", "hidden")

Array = jax.Array


def _stage_widths(config: Config) -> list[int]:
    return [config["backbone"].get("embed_dim", Swin.embed_dim) * 2**i for i in range(STAGES)]


class Swin(nn.Module):
    """Four stages of windowed attention; parameters, norms and softmax are float32."""

    embed_dim: int = 128  # channels of the first stage; doubled from stage to stage
    depths: Sequence[int] = (2, 2, 18, 2)  # blocks per stage
    num_heads: Sequence[int] = (4, 8, 16, 32)  # attention heads per stage
    window_size: int = 12  # tokens per side of a window
    mlp_ratio: float = 4.0  # hidden width of the MLPs over the channels
    drop_path_rate: float = 0.3  # of the last block; it grows linearly from 0 at the first block
    remat: bool = False  # recompute each block in the backward pass, from its input alone
    dtype: str = "float32"  # of matrix products and activations

    RULES = (
        *at_least(1, "backbone.embed_dim", "backbone.window_size"),
        *per_stage("backbone.depths"),
        heads_rule(_stage_widths),
        DROP_PATH_RULE,
    )

    @nn.compact
    def __call__(
        self, x: Array, train: bool = False, frame_ids: Array | None = None
    ) -> dict[str, Array]:
        """Feature maps of normalized images [N, H, W, 3].

        `train` draws drop path from the rng stream "drop_path". A frame's draws depend on the key
        and its id (int32 [N], by default 0 .. N - 1), not on the other frames of the batch.

        Returns:
          {"res2": [N, ceil(H / 4), ceil(W / 4), embed_dim], .., "res5": [N, h, w, 8 embed_dim]},
          of `dtype`; each map has half the size of the previous one, rounded up. The output of each
          block is sown as `block_out` in the collection "intermediates".
        """
        num_frames = check_shape("x", x, "N H W 3")["N"]
        dtype = jnp.dtype(self.dtype)
        scales = draw_drop_path(self, num_frames, frame_ids, train)

        x = PatchEmbed(self.embed_dim, dtype, name="patch_embed")(x)
        outputs, first = {}, 0
        for i, (level, depth) in enumerate(zip(FEATURE_LEVELS, self.depths, strict=True)):
            dim = self.embed_dim * 2**i
            stage = Stage(
                depth=depth,
                downsample=i < len(FEATURE_LEVELS) - 1,
                remat=self.remat,
                block=dict(
                    num_heads=self.num_heads[i],
                    window_size=self.window_size,
                    mlp_dim=int(dim * self.mlp_ratio),
                    dtype=dtype,
                ),
                name=f"layers_{i}",
            )
            out, x = stage(x, None if scales is None else scales[first : first + depth])
            outputs[level] = LayerNorm(name=f"norm{i}")(out)
            first += depth
        return outputs


class PatchEmbed(nn.Module):
    """Tokens of 4 x 4 pixels: [N, H, W, 3] -> [N, ceil(H / 4), ceil(W / 4), dim]."""

    dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = _pad_to_multiple(x.astype(self.dtype), PATCH)
        init = torch_uniform(PATCH * PATCH * x.shape[-1])
        x = nn.Conv(
            self.dim,
            (PATCH, PATCH),
            strides=PATCH,
            padding="VALID",
            dtype=self.dtype,
            kernel_init=init,
            bias_init=init,
            name="proj",
        )(x)
        x = LayerNorm(name="norm")(x)
        self.sow("intermediates", "out", x)
        return x


class Stage(nn.Module):
    """The blocks of one resolution, then PatchMerging if `downsample`; `block` are Block fields."""

    depth: int
    downsample: bool
    remat: bool
    block: dict

    @nn.compact
    def __call__(self, x: Array, scales: Array | None) -> tuple[Array, Array]:
        """[N, h, w, C], drop-path scales [depth, 2, N] or None -> (map, next stage's input)."""
        num_pairs = self.depth // 2
        if num_pairs:
            pair_scales = None
            if scales is not None:
                pair_scales = scales[: 2 * num_pairs].reshape(num_pairs, 2, *scales.shape[1:])
            pairs = nn.scan(
                BlockPair,
                variable_axes={"params": 0, "intermediates": 0},
                split_rngs={"params": True},
                length=num_pairs,
            )
            x, _ = pairs(self.block, self.remat, name="pairs")(x, pair_scales)
        if self.depth % 2:
            block = _recomputed(Block, self.remat)
            last = block(**self.block, shifted=False, name="last")
            x = last(x, None if scales is None else scales[-1])
        if not self.downsample:
            return x, x
        return x, PatchMerging(self.block["dtype"], name="downsample")(x)


def _recomputed(module: type[nn.Module], everything: bool) -> type[nn.Module]:
    """The module, saving SAVED_FOR_BACKWARD, or nothing but its input if `everything`.

    prevent_cse keeps its default: XLA inlines a scan of one pair, and would then merge the forward
    pass with its recomputation and keep everything after all.
    """
    policies = jax.checkpoint_policies
    policy = None if everything else policies.save_only_these_names(*SAVED_FOR_BACKWARD)
    return nn.remat(module, policy=policy)


class BlockPair(nn.Module):
    """An unshifted and a shifted block, the body of the scan."""

    block: dict
    remat: bool

    @nn.compact
    def __call__(self, x: Array, scales: Array | None) -> tuple[Array, None]:
        """[N, h, w, C], drop-path scales [2, 2, N] or None -> ([N, h, w, C], None)."""
        for i in range(2):
            block = _recomputed(Block, self.remat)
            block = block(**self.block, shifted=bool(i), name=f"block_{i}")
            x = block(x, None if scales is None else scales[i])
        return x, None


class Block(nn.Module):
    """Pre-norm residual windowed self-attention and MLP."""

    num_heads: int
    window_size: int
    mlp_dim: int
    dtype: jnp.dtype
    shifted: bool

    @nn.compact
    def __call__(self, x: Array, scales: Array | None) -> Array:
        """[N, h, w, C], drop-path scales [2, N] or None -> [N, h, w, C]."""
        attn = WindowAttention(
            self.num_heads, self.window_size, self.dtype, self.shifted, name="attn"
        )
        mlp = FeedForward(self.mlp_dim, self.dtype, name="mlp")
        for i, branch in enumerate((attn, mlp)):
            y = branch(LayerNorm(name=f"norm{i + 1}")(x))
            x = x + (y if scales is None else y * scales[i][:, None, None, None])
            x = checkpoint_name(x, "residual")
        self.sow("intermediates", "block_out", x)
        return x


class WindowAttention(nn.Module):
    """Self-attention in square windows, with a learned bias per head and (query - key) offset."""

    num_heads: int
    window_size: int
    dtype: jnp.dtype
    shifted: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        (_, h, w, dim), size, heads = x.shape, self.window_size, self.num_heads
        shift = size // 2 if self.shifted else 0
        # Padding before the projection gives it keys and values (the bias), as weights expect.
        x = _pad_to_multiple(x, size)
        padded = x.shape[1:3]
        x = jnp.roll(x, (-shift, -shift), (1, 2))
        x = split_windows(x, size)
        qkv = checkpoint_name(Linear(3 * dim, dtype=self.dtype, name="qkv")(x), "qkv")
        q, k, v = jnp.moveaxis(qkv.reshape(*x.shape[:3], 3, heads, dim // heads), 3, 0)
        table = self.param(
            "relative_position_bias_table",
            nn.initializers.truncated_normal(0.02),
            ((2 * size - 1) ** 2, heads),
        )
        bias = jnp.moveaxis(table[relative_position_index(size)], -1, 0)
        biases = [bias[None, None]]
        if shift:
            biases.append(shift_mask(*padded, size, shift)[None, :, None])
        x = checkpoint_name(softmax_attention(q, k, v, biases).reshape(x.shape), "attended")
        x = Linear(dim, dtype=self.dtype, name="proj")(x)
        x = merge_windows(x, size, *padded)
        return jnp.roll(x, (shift, shift), (1, 2))[:, :h, :w]


class FeedForward(nn.Module):
    """Linear, exact GELU, Linear."""

    hidden_dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        dim = x.shape[-1]
        x = checkpoint_name(Linear(self.hidden_dim, dtype=self.dtype, name="fc1")(x), "hidden")
        x = nn.gelu(x, approximate=False)
        return Linear(dim, dtype=self.dtype, name="fc2")(x)


class PatchMerging(nn.Module):
    """Half the size, twice the channels: [N, h, w, C] -> [N, ceil(h / 2), ceil(w / 2), 2 C]."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        dim = x.shape[-1]
        x = _pad_to_multiple(x, 2)
        # (row, column) offsets (0, 0), (1, 0), (0, 1), (1, 1): pretrained weights need this order.
        x = jnp.concatenate([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], axis=-1)
        x = LayerNorm(name="norm")(x)
        return Linear(2 * dim, use_bias=False, dtype=self.dtype, name="reduction")(x)


def split_windows(x: Array, size: int) -> Array:
    """[N, h, w, C] -> [N, R, size * size, C], row by row; h and w are multiples of size."""
    n, h, w, c = x.shape
    x = x.reshape(n, h // size, size, w // size, size, c)
    return jnp.swapaxes(x, 2, 3).reshape(n, -1, size * size, c)


def merge_windows(x: Array, size: int, h: int, w: int) -> Array:
    """[N, R, size * size, C] -> [N, h, w, C], the inverse of split_windows."""
    n, c = x.shape[0], x.shape[-1]
    x = x.reshape(n, h // size, w // size, size, size, c)
    return jnp.swapaxes(x, 2, 3).reshape(n, h, w, c)


@functools.lru_cache
def relative_position_index(size: int) -> np.ndarray:
    """int32 [L, L], L = size * size: the row of the bias table for (query, key).

    (dy + size - 1) * (2 * size - 1) + dx + size - 1, where (dy, dx) is query minus key position.
    """
    tokens = np.indices((size, size)).reshape(2, -1)
    dy, dx = tokens[:, :, None] - tokens[:, None] + size - 1
    return (dy * (2 * size - 1) + dx).astype(np.int32)


@functools.lru_cache
def shift_mask(h: int, w: int, size: int, shift: int) -> np.ndarray:
    """float32 [R, L, L]: MASKED between tokens that only the cyclic shift put into one window.

    h and w include the padding, whose tokens count like any others.
    """

    def bands(length: int) -> np.ndarray:
        return np.repeat([0, 1, 2], [length - size, size - shift, shift])

    region = 3 * bands(h)[:, None] + bands(w)[None]
    region = region.reshape(h // size, size, w // size, size).swapaxes(1, 2).reshape(-1, size**2)
    return np.where(region[:, :, None] == region[:, None], 0.0, MASKED).astype(np.float32)


def _pad_to_multiple(x: Array, multiple: int) -> Array:
    bottom, right = -x.shape[1] % multiple, -x.shape[2] % multiple
    return jnp.pad(x, ((0, 0), (0, bottom), (0, right), (0, 0))) if bottom or right else x
