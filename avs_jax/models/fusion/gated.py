"""Gated fusion: visual and audio tokens decide together how much of the sound enters the visual.

One layer, for visual tokens x and audio tokens a, with the gates read before x changes:

  c    = [x ; a ; energy ; text]       means over the tokens, or token by token
  r_k  = W2 act(W1 c)                  one small MLP per gate k = mha, ffn, beta
  z    = x + g_mha N(branch)           branch: "aligned" W_o W_a LN(a_t), added at token t, or
                                       "cross" attention MHA(LN(x), a, a)
  f    = N(FFN(LN(z)))
  z'   = z + g_ffn f                   or, with FiLM, z + (1 + g_ffn) f + g_beta
  x    = z' + MHA(LN(z'));  x = x + FFN(LN(x))

  kind "sigmoid"   g_mha = s sigmoid((r_mha + b) / temp), g_ffn = alpha tanh(r_ffn),
                   g_beta = beta tanh(r_beta); b, s, alpha and beta are learned and not bounded
  kind "tanh"      g = tanh(r); zero weights close the gates and leave the plain transformer, bit
                   for bit

N is a LayerNorm if `delta_norm`, else the identity. The norm hides the loudness of the sound, which
`energy` (log-RMS per token) gives back to the gates; `text` makes them depend on the query.

Source, by family: "avigate" is AVIGATE (Jeong et al., CVPR 2025; BoseungJeong/AVIGATE-CVPR2025,
commit ca03ede), "custom" the gate of a fork of QD-DETR (dd81d7c), "b0" the fork's older one
(73b09d9).
Departure: means and attention leave padded tokens out. The originals average over them, and AVIGATE
attends to them; `pooling = "reference"` does the same.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from avs_jax.models.attention import Attention, hide_padding
from avs_jax.models.layers import LayerNorm, Linear
from avs_jax.models.transformer import quick_gelu
from avs_jax.spec import InputError, nearest

ACTIVATIONS = {"relu": nn.relu, "quick_gelu": quick_gelu}
FFN_RATIO = 4  # hidden width over D
CHOICES = {
    "kind": ("sigmoid", "tanh"),
    "granularity": ("global", "channel", "clipwise", "elementwise"),
    "attn": ("aligned", "cross"),
    "pooling": ("masked", "reference"),
    "activation": tuple(ACTIVATIONS),
}


@dataclasses.dataclass(frozen=True)
class GateConfig:
    """The keys of a gate, with the values of the family "custom".

    Attributes:
      kind, film, delta_norm: see the module's docstring.
      granularity: a gate is "global" [B, 1, 1] or "channel" [B, 1, D], from means over the tokens;
        "clipwise" [B, L, 1] or "elementwise" [B, L, D], token by token.
      temp: of the sigmoid.
      bias_init, scale_init, alpha_init, beta_init: where b, s, alpha and beta start.
      attn: "aligned" needs as many audio tokens as visual ones, "cross" does not.
      energy, text: whether the gates read them.
      pooling: "masked" or "reference".
      activation, use_bias, epsilon: of the MLPs; of the gated parts and gates; of the LayerNorms.
      init_std: of the kernels at the start, with biases of zero; 0 = PyTorch's defaults.
    """

    kind: str = "sigmoid"
    granularity: str = "global"
    temp: float = 1.5
    bias_init: float = 1.0
    scale_init: float = 1.0
    alpha_init: float = 0.3
    beta_init: float = 0.3
    film: bool = False
    delta_norm: bool = True
    attn: str = "aligned"
    energy: bool = False
    text: bool = False
    pooling: str = "masked"
    activation: str = "relu"
    use_bias: bool = True
    epsilon: float = 1e-5
    init_std: float = 0.0

    def __post_init__(self):
        for key, choices in CHOICES.items():
            if getattr(self, key) not in choices:
                raise InputError(f"gate.{key} = {getattr(self, key)!r}: choose one of {choices}")

    @property
    def kernel_init(self) -> nn.initializers.Initializer | None:
        return nn.initializers.normal(self.init_std) if self.init_std else None


FAMILIES: dict[str, dict[str, Any]] = {
    "custom": {},
    "b0": {"kind": "tanh", "delta_norm": False},
    "avigate": {
        "kind": "tanh",
        "delta_norm": False,
        "attn": "cross",
        "activation": "quick_gelu",
        "use_bias": False,
        "epsilon": 1e-12,
        "init_std": 0.02,
    },
}


def make_gate_config(family: str, overrides: Mapping[str, Any]) -> GateConfig:
    """The gate of a family, with some keys overridden.

    Raises:
      InputError: an unknown family, key or value.
    """
    if family not in FAMILIES:
        raise InputError(f"fusion.family = {family!r}: choose one of {sorted(FAMILIES)}")
    known = sorted(field.name for field in dataclasses.fields(GateConfig))
    for key in overrides:
        if key not in known:
            raise InputError(f"gate.{key}: no such key; nearest: {nearest(key, known) or known}")
    return GateConfig(**(FAMILIES[family] | dict(overrides)))


def pool_tokens(x: jax.Array, valid: jax.Array | None) -> jax.Array:
    """[B, L, D] -> float32 [B, 1, D], the mean over valid tokens (bool [B, L]; None = all)."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if valid is None:
        return x.mean(1, keepdims=True)
    x = jnp.where(valid[:, :, None], x, 0)
    return x.sum(1, keepdims=True) / jnp.maximum(valid.sum(1), 1)[:, None, None]


class TwoLayers(nn.Module):
    """Linear, activation, linear: `layers_0` and `layers_2`."""

    config: GateConfig
    features: tuple[int, int]
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = self.config.kernel_init
        bias_init = nn.initializers.zeros if init else None
        for i, width in enumerate(self.features):
            x = ACTIVATIONS[self.config.activation](x) if i else x
            name = f"layers_{2 * i}"
            x = Linear(width, self.use_bias, init, bias_init, self.dtype, name=name)(x)
        return x


class Gates(nn.Module):
    """The gates of one layer, in float32."""

    config: GateConfig
    features: int  # D

    @nn.compact
    def __call__(self, c: jax.Array) -> dict[str, Any]:
        """[B, 1 or L, C] -> gate_mha, gate_ffn[, gate_beta] [B, 1 or L, 1 or D]; raw, r by gate."""
        config = self.config

        def learned(name, start):
            return self.param(name, nn.initializers.constant(start), ())

        width = self.features if config.granularity in ("channel", "elementwise") else 1
        raw = {
            gate: TwoLayers(
                config, (self.features // 2, width), config.use_bias, name=f"mlp_{gate}"
            )(c)
            for gate in ("mha", "ffn", "beta")[: 2 + config.film]
        }
        if config.kind == "tanh":
            gates = {gate: jnp.tanh(r) for gate, r in raw.items()}
        else:
            shifted = raw["mha"] + learned("mha_bias", config.bias_init)
            scale = learned("mha_scale", config.scale_init)
            gates = {"mha": nn.sigmoid(shifted / config.temp) * scale}
            gates["ffn"] = jnp.tanh(raw["ffn"]) * learned("ffn_alpha", config.alpha_init)
            if config.film:
                gates["beta"] = jnp.tanh(raw["beta"]) * learned("ffn_beta", config.beta_init)
        return {f"gate_{gate}": value for gate, value in gates.items()} | {"raw": raw}


class GatedLayer(nn.Module):
    """One layer; see the module's docstring."""

    config: GateConfig
    num_heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        a: jax.Array,
        x_mask: jax.Array | None,
        a_mask: jax.Array | None,
        extra: tuple[jax.Array, ...] = (),
    ) -> tuple[jax.Array, dict[str, Any]]:
        """As `GatedFusion`; extra: what the gates read beside x and a, [B, 1 or L, C]."""
        config, width = self.config, x.shape[-1]
        visible = x_mask
        if config.pooling == "reference":
            a_mask = None
            visible = None if config.attn == "cross" else x_mask
        pooled_mask = x_mask if config.pooling == "masked" else None
        c = self._gate_input(x, a, pooled_mask, a_mask, extra)
        gates = Gates(config, width, name="gates")(c)
        gate = {key: value.astype(self.dtype) for key, value in gates.items() if key != "raw"}

        def norm(name):
            return LayerNorm(config.epsilon, name=name)

        def ffn(name, use_bias):
            return TwoLayers(config, (FFN_RATIO * width, width), use_bias, self.dtype, name=name)

        def attention(name):
            init = config.kernel_init
            return Attention(self.num_heads, out_init=init, dtype=self.dtype, name=name)

        x = x.astype(self.dtype)
        if config.attn == "aligned":
            branch = Linear(width, dtype=self.dtype, name="a_proj")(norm("norm1")(a))
            branch = Linear(width, dtype=self.dtype, name="out_proj")(branch)
        else:
            branch, _ = attention("cross_attn")(norm("norm1")(x), a, a, hide_padding(a_mask))
        if config.delta_norm:
            branch = norm("delta_norm_mha")(branch)
        x = x + gate["gate_mha"] * branch
        change = ffn("ffn1", config.use_bias)(norm("norm2")(x))
        if config.delta_norm:
            change = norm("delta_norm_ffn")(change)
        if config.film:
            x = x + (1 + gate["gate_ffn"]) * change + gate["gate_beta"]
        else:
            x = x + gate["gate_ffn"] * change
        y = norm("norm3")(x)
        x = x + attention("self_attn")(y, y, y, hide_padding(visible))[0]
        return x + ffn("ffn2", True)(norm("norm4")(x)), gates

    def _gate_input(self, x, a, x_mask, a_mask, extra):
        if self.config.granularity in ("global", "channel"):
            parts = [pool_tokens(x, x_mask), pool_tokens(a, a_mask)]
            parts += [pool_tokens(y, x_mask) if y.shape[1] > 1 else y for y in extra]
        else:
            sound = a if self.config.attn == "aligned" else pool_tokens(a, a_mask)
            parts = [jnp.broadcast_to(y, (*x.shape[:2], y.shape[-1])) for y in (x, sound, *extra)]
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return jnp.concatenate([part.astype(wide) for part in parts], axis=-1)


class GatedFusion(nn.Module):
    """A stack of gated layers.

    Attributes:
      family: key of FAMILIES, the defaults of `gate`.
      num_layers, num_heads: of the stack, of its attentions.
      gate: keys of GateConfig that differ from the family's.
      dtype: of the computation; gates, norms and softmax are float32 at least.
    """

    family: str = "custom"
    num_layers: int = 4
    num_heads: int = 4
    gate: Mapping[str, Any] = FrozenDict()
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        a: jax.Array,
        x_mask: jax.Array | None = None,
        a_mask: jax.Array | None = None,
        *,
        energy: jax.Array | None = None,
        text: jax.Array | None = None,
        text_mask: jax.Array | None = None,
    ) -> tuple[jax.Array, list[dict[str, Any]]]:
        """Fuses sound into visual tokens.

        Args:
          x, a: [B, L, D] visual and [B, M, D] audio tokens; M = L if `gate.attn` is "aligned".
          x_mask, a_mask: bool [B, L] and [B, M], True = valid; None = all.
          energy: [B, L], log-RMS of the sound at each token; read if `gate.energy`.
          text: [B, Lt, D], the query's tokens, with text_mask bool [B, Lt]; read if `gate.text`.

        Returns:
          [B, L, D]; and per layer gate_mha, gate_ffn[, gate_beta] [B, 1 or L, 1 or D] and raw, the
          values before the nonlinearity {mha, ffn[, beta]}, float32.

        Raises:
          InputError: lengths that do not align, a missing input, an unknown key or value.
        """
        config = make_gate_config(self.family, self.gate)
        if config.attn == "aligned" and a.shape[1] != x.shape[1]:
            raise InputError(
                f"fusion: {a.shape[1]} audio tokens for {x.shape[1]} visual ones; "
                "gate.attn = 'aligned' needs as many, 'cross' does not"
            )
        for name, value in (("energy", energy), ("text", text)):
            if getattr(config, name) and value is None:
                raise InputError(f"gate.{name} is on and the input has no {name}")
        extra = [energy[:, :, None]] if config.energy else []
        extra += [pool_tokens(text, text_mask)] if config.text else []
        layers = []
        for i in range(self.num_layers):
            layer = GatedLayer(config, self.num_heads, self.dtype, name=f"layers_{i}")
            x, gates = layer(x, a, x_mask, a_mask, tuple(extra))
            layers.append(gates)
        return x, layers
