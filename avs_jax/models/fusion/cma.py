"""Cross-modal attention (CMA): every cell of the feature maps attends to an expression's words.

  t' = W_t t;  q = LN(x);  k = v = LN(t');  o = W_o MHA(q, k, v, key mask)
  y  = x + s gamma o                                       per level, residual on x itself

gamma is learned per level and starts at 0, so a loaded model without CMA keeps its masks bit for
bit; s rises from s > 0 at the first step to 1 after the fraction `warmup` of the training. Levels
share one module; where a level's width differs from `hidden_dim`, 1x1 projections lead in and out.

One key is degenerate: its softmax is 1, so every cell receives the same vector. `null_key` adds a
learned key and value to which a cell may attend instead, which makes a single token a sigmoid gate
per cell. `text_pool` says what the keys are:

  tokens   every token                   mean  the mean of the valid tokens
  cls      the first token               attn  a learned query's attention over the tokens
  topk     the top_k tokens by a learned score, each times sigmoid(score): a hard choice alone would
           give the scorer no gradient

`mask_gate` multiplies o by sigmoid(m / tau), and the same code runs in training and inference:

  prior    m is a mask prior that has not seen the text, without gradient
  located  m are the logits of the localizer (models/decoders/localizer.py), with its gradient;
           and y += s sigmoid(m / tau) u, u a learned vector per level that starts at 0: gamma, one
           number, moves too slowly to carry the map to the masks

Source: repository pengrui-art/SALMA, module CrossModalAttention2D, which is `raw_text = True` and
`null_key = False`: tokens enter without projection and norm. Departures:
the sigmoid of top-k; the original's phrase routing and FiLM are left out, as is its mode "bias",
which adds the same number to every key and cancels in the softmax; levels that cannot be served
raise, where the original skips them.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.models.attention import attend, hide_padding, split_heads
from avs_jax.models.fusion.gated import pool_tokens
from avs_jax.models.layers import InProjection, LayerNorm, Linear, xavier_uniform
from avs_jax.models.rules import Rule, at_least, one_of, within
from avs_jax.models.stage import Stage, StageInputs, StageResult
from avs_jax.ops.sampling import resize_bilinear
from avs_jax.spec import InputError

CMA_LEVELS = ("res5", "res4", "res3", "res2")  # strides 32, 16, 8 and 4
POOLS = ("tokens", "mean", "cls", "attn", "topk")
GATES = ("none", "prior", "located")
FIRST_STRENGTH = 0.01  # s of the first step


def _are_levels(names: Any, _: Any) -> bool:
    return len(names) > 0 and set(names) <= set(CMA_LEVELS) and len(set(names)) == len(names)


class TextKeys(nn.Module):
    """Tokens [N, L, C] to the keys that cells attend to."""

    pool: str
    top_k: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, text: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[N, L, C] and bool [N, L] -> keys [N, S, C] and which exist, bool [N, S]."""
        one = mask.any(1, keepdims=True)
        if self.pool == "tokens":
            return text, mask
        if self.pool == "mean":
            return pool_tokens(text, mask).astype(text.dtype), one
        if self.pool == "cls":
            return text[:, :1], mask[:, :1]
        score = Linear(1, dtype=self.dtype, name="score")(text)[..., 0].astype(jnp.float32)
        score = jnp.where(mask, score, jnp.finfo(jnp.float32).min)
        if self.pool == "attn":
            share = nn.softmax(score, axis=1).astype(text.dtype)
            return jnp.einsum("nl,nlc->nc", share, text)[:, None], one
        best, index = jax.lax.top_k(score, min(self.top_k, text.shape[1]))
        kept = jnp.take_along_axis(text, index[..., None], axis=1)
        weight = nn.sigmoid(best)[..., None].astype(text.dtype)
        return kept * weight, jnp.take_along_axis(mask, index, axis=1)


class CellAttention(nn.Module):
    """One layer's o for the cells of one level; the same weights serve every level."""

    num_heads: int
    null_key: bool
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, keys: jax.Array, exists: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """[N, S, C], [N, L, C], bool [N, L] -> [N, S, C], weights float32 [N, S, L or L + 1]."""
        width = x.shape[-1]
        if self.null_key:
            normal = nn.initializers.normal(0.02)
            null = (
                self.param("null_key", normal, (1, width)),
                self.param("null_value", normal, (1, width)),
            )
            shape = (keys.shape[0], 1, width)
            extra = [jnp.broadcast_to(row[None].astype(keys.dtype), shape) for row in null]
            values = jnp.concatenate([keys, extra[1]], axis=1)
            keys = jnp.concatenate([keys, extra[0]], axis=1)
            exists = jnp.pad(exists, ((0, 0), (0, 1)), constant_values=True)
        else:
            values = keys
        q = LayerNorm(name="norm")(x)
        projected = InProjection(self.dtype, name="in_proj")(q, keys, values)
        q, k, v = (split_heads(y, self.num_heads) for y in projected)
        out, weights = attend(q, k, v, hide_padding(exists))
        out = jnp.where(exists.any(1)[:, None, None], out, 0)  # nothing to attend to
        zeros = nn.initializers.zeros
        out = Linear(width, True, xavier_uniform, zeros, self.dtype, name="out_proj")(out)
        out = Linear(width, dtype=self.dtype, name="proj")(out)
        return out, weights.mean(1)


class CMA(nn.Module):
    """Language into feature maps; see the module's docstring.

    Attributes:
      levels: which maps, of CMA_LEVELS; res2 are the mask features, which generate the queries.
      hidden_dim: C of the attention; 0: the width of the first level.
      num_heads: G.
      num_layers, share_layers: layers of attention, with the same weights or their own.
      text_pool, top_k, null_key: see above.
      mask_gate, tau: of GATES; temperature of the gate.
      warmup: fraction of the training.
      gamma_init: where gamma starts.
      grid: cells per side of res5 that the module is made for; another size is resized to it
        (finer levels to its multiples) and back, with a warning, or is an error if `on_mismatch` is
        "error". 0: any.
      raw_text: as published; needs `hidden_dim` = Dt.
      dtype: of the computation; norms and softmax are float32 at least.
    """

    levels: tuple[str, ...] = ("res5", "res4", "res3", "res2")
    hidden_dim: int = 0
    num_heads: int = 8
    num_layers: int = 1
    share_layers: bool = True
    text_pool: str = "tokens"
    top_k: int = 3
    null_key: bool = True
    mask_gate: str = "none"
    tau: float = 1.0
    warmup: float = 0.1
    gamma_init: float = 0.0
    grid: int = 0
    on_mismatch: str = "resize"
    raw_text: bool = False
    dtype: jnp.dtype = jnp.float32

    RULES = (
        Rule("fusion.levels", _are_levels, lambda _: f"some of {list(CMA_LEVELS)}, each once"),
        *at_least(1, "fusion.num_heads", "fusion.top_k"),
        within("fusion.num_layers", lambda x: x in (1, 2, 3), "1, 2 or 3"),
        one_of("fusion.text_pool", POOLS),
        one_of("fusion.mask_gate", GATES),
        one_of("fusion.on_mismatch", ("resize", "error")),
        within("fusion.tau", lambda x: x > 0, "above 0"),
        within("fusion.warmup", lambda x: 0 <= x <= 1, "a share, 0..1"),
        *at_least(0, "fusion.grid", "fusion.hidden_dim"),
    )

    @nn.compact
    def __call__(
        self,
        maps: Mapping[str, jax.Array],
        text: jax.Array,
        text_mask: jax.Array,
        prior: jax.Array | None = None,
        progress: jax.Array | float = 1.0,
    ) -> tuple[dict[str, jax.Array], dict[str, Any]]:
        """Adds language to the maps.

        Args:
          maps: level -> [N, h, w, C].
          text: [N, L, Dt]; text_mask: bool [N, L], True = valid.
          prior: mask logits [N, h, w] of any size, m of `mask_gate`.
          progress: [], fraction of the training that is done.

        Returns:
          the maps; and by level the attention over the keys, float32 [N, h, w, L (+ 1)].

        Raises:
          InputError: a level or the prior is missing, a grid differs and must not, or raw tokens
            have another width than the attention.
        """
        missing = [level for level in self.levels if level not in maps]
        if missing:
            raise InputError(f"fusion.levels: {missing[0]!r} is not one of the maps {sorted(maps)}")
        if self.mask_gate != "none" and prior is None:
            need = "a localizer" if self.mask_gate == "located" else "a mask prior"
            raise InputError(f"fusion.mask_gate = {self.mask_gate!r} needs {need}")
        width = self.hidden_dim or maps[self.levels[0]].shape[-1]
        text = text.astype(self.dtype)
        if not self.raw_text:
            text = Linear(width, dtype=self.dtype, name="text_proj")(text)
            text = LayerNorm(name="text_norm")(text)
        elif text.shape[-1] != width:
            raise InputError(
                f"fusion.raw_text = True: tokens have {text.shape[-1]} channels, the attention "
                f"{width}; fusion.hidden_dim = {text.shape[-1]} makes them equal"
            )
        keys, exists = TextKeys(self.text_pool, self.top_k, self.dtype, name="keys")(
            text, text_mask
        )
        count = 1 if self.share_layers else self.num_layers
        layers = [
            CellAttention(self.num_heads, self.null_key, self.dtype, name=f"layers_{i}")
            for i in range(count)
        ]
        strength = strength_at(progress, self.warmup)
        changed, attention = dict(maps), {}
        for level in self.levels:
            gamma = self.param(f"gamma_{level}", nn.initializers.constant(self.gamma_init), ())
            x = maps[level]
            size = self._grid(level, x)
            y = x if size is None else resize_bilinear(x, size)
            enter, leave = self._projections(level, x.shape[-1], width)
            for i in range(self.num_layers):
                cells = enter(y.reshape(y.shape[0], -1, y.shape[-1]).astype(self.dtype))
                out, weights = layers[i % count](cells, keys, exists)
                out = leave(out).reshape(y.shape)
                if self.mask_gate != "none":
                    out = out * self._gate(prior, out.shape[1:3]).astype(out.dtype)
                y = y + (strength * gamma).astype(y.dtype) * out.astype(y.dtype)
            if self.mask_gate == "located":
                mark = self.param(f"mark_{level}", nn.initializers.zeros, y.shape[-1:])
                located = self._gate(prior, y.shape[1:3])
                y = y + (strength * located * mark[None, None, None]).astype(y.dtype)
            changed[level] = y if size is None else resize_bilinear(y, x.shape[1:3])
            attention[level] = weights.reshape(*y.shape[:3], -1)
        return changed, attention

    def _projections(self, level: str, theirs: int, width: int) -> tuple[Any, Any]:
        """Into and out of the attention's width; identities where a level has it."""
        if theirs == width:
            return lambda x: x, lambda x: x
        enter = Linear(width, dtype=self.dtype, name=f"in_{level}")
        return enter, Linear(theirs, dtype=self.dtype, name=f"out_{level}")

    def _gate(self, prior: jax.Array, size: tuple[int, int]) -> jax.Array:
        if self.mask_gate == "prior":
            prior = jax.lax.stop_gradient(prior)
        prior = prior.astype(jnp.float32)
        return nn.sigmoid(resize_bilinear(prior[..., None], size) / self.tau)

    def _grid(self, level: str, x: jax.Array) -> tuple[int, int] | None:
        """The size to resize a map to; None if it has it."""
        side = self.grid * 2 ** CMA_LEVELS.index(level)
        if not self.grid or x.shape[1:3] == (side, side):
            return None
        found = f"CMA is made for {level} of {side} x {side} cells, not {x.shape[1]} x {x.shape[2]}"
        if self.on_mismatch == "error":
            raise InputError(f"{found}; fusion.on_mismatch = 'resize' takes it")
        warnings.warn(f"{found}: resized to it and back", stacklevel=2)  # once per traced shape
        return side, side


def strength_at(progress: jax.Array | float, warmup: float) -> jax.Array:
    """s, rising from FIRST_STRENGTH to 1 over the first `warmup` of the training."""
    share = jnp.asarray(progress, jnp.float32) / max(warmup, 1e-9)
    return jnp.clip(share, FIRST_STRENGTH, 1.0)


def _apply(module: CMA, inputs: StageInputs) -> StageResult:
    if inputs.text is None:
        raise InputError("fusion.name = 'cma' reads text, but config.model.text is none")
    maps = dict(zip(CMA_LEVELS, (*inputs.levels, inputs.mask_features), strict=True))
    prior = inputs.mask_prior() if module.mask_gate == "prior" else inputs.location
    changed, attention = module(maps, *inputs.text, prior, inputs.progress)
    *levels, mask_features = (changed[level] for level in CMA_LEVELS)
    return StageResult(
        features=mask_features, levels=levels, intermediates={"attention": attention}
    )


def _schedules(section: Mapping[str, Any]) -> dict[str, Any]:
    return {"cma_strength": lambda progress: strength_at(progress, section.get("warmup", 0.1))}


STAGE = Stage(
    CMA,
    parameter="cma",
    acts_on=("features", "levels"),
    apply=_apply,
    schedules=_schedules,
    logged_params={f"gamma_{level}": f"cma/gamma_{level}" for level in CMA_LEVELS},
)
