"""Audio-motion alignment (AMA): where in a frame motion matches the sound.

  keys    = BN(conv1x1(ReLU(BN(conv3x3(motion on a grid x grid map)))))    [N, S, E], S = grid^2
  query   = LN(W a), a the frame's mean audio feature                      [N, 1, E]
  A       = mean over heads of softmax over cells of (Wq query)(Wk keys)^T / sqrt(E / G) * tau
  map     = (A - min A) / (max A - min A + 1e-8) per frame                 [N, grid, grid]

The map reweights the pixels that queries are generated from (ppqg.py), as in the source, or is
added to the mask features:

  features = features + W map, W [1, D] and initially 0

With `levels`, coarser grids attend too, each with a motion encoder and a tau of its own:

  A = sum_s w_s up(A_s) (g_s / grid)^2, w a learned softmax; motion is averaged to their cells

With `temporal`, the encoded motion of a frame knows of the other frames (motion_memory.py).

Optionally, a gate per frame multiplies the map first (evidence_gate.py); it is initially 1.

With `consistency`, values V get a reader: the embeddings that losses/consistency.py compares,

  motion_embed = L2norm(W sum_x A_x V_x), motion_audio_embed = L2norm(W' a)

They change no mask by themselves. That loss can also compare A, before dropout, with the ground
truth.

Source: the AMA authors' notes on VCT + AMA (users of spyflying/VCT_AVS; in their repository,
Jackey0903/SKA-VCT, AMA is "motion verification"). Their value projection is computed but never
read, so it is left out unless `consistency` reads it.

Dropouts against over-fitting, off by default (the notes name the rates, not the places):

  attention_dropout   an attention entry falls back to 1 / S, no evidence for its cell; the others
                      move away from 1 / S by a factor of 1 / (1 - rate)
  projection_dropout  a channel of Wq query is 0, which also cancels that channel of every key
  map_dropout         a clip gets no map

With "minmax", a frame without motion keeps its map of zeros under all three. A plain dropout of
attention or keys would make its cells differ, and the normalization would stretch that to 0..1.

Departure: for a frame with flat attention (max - min < 1e-6: nothing moves) the normalization
passes no gradient. The original divides rounding noise by 1e-8 there and learns from it. Forward
values are the original's.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.models.fusion.evidence_gate import EvidenceGate
from avs_jax.models.fusion.motion_memory import KINDS, remember
from avs_jax.models.layers import BatchNorm, Conv, LayerNorm, Linear
from avs_jax.models.rules import Rule, at_least, divides, look_up, one_of, within
from avs_jax.models.stage import Stage, StageInputs, StageResult
from avs_jax.ops.sampling import resize_bilinear
from avs_jax.ops.unit_length import normalize
from avs_jax.spec import FRAMES_PER_CLIP, InputError

EPSILON = 1e-8
SHORT = 1e-6  # an embedding of less does not get unit length
FLAT = 1e-6  # of max - min
FLOW_CHANNELS = 64
TEMPERATURE_MODES = ("mul", "div")
NORMALIZATIONS = ("minmax", "softmax_hw")
AT = ("queries", "features", "both")
# What losses/consistency.py reads, with motion_ramp.
CONSISTENCY_OUTPUTS = (
    "motion_embed",
    "motion_audio_embed",
    "motion_energy",
    "motion_attention",
    "motion_cells",
)


def normalize_map(
    attention: jax.Array, method: str = "minmax", grad_through_extrema: bool = True
) -> jax.Array:
    """Attention over the cells of a frame to weights [N, h, w] in 0..1.

    Args:
      attention: [N, h, w], summing to 1 per frame.
      method: "minmax": the minimum maps to 0, the maximum to 1, and a flat map to 0 everywhere;
        "softmax_hw": A hw / (1 + A hw), 1/2 everywhere for a flat map.
      grad_through_extrema: False treats minimum and maximum as constants in the gradient.
    """
    if method == "softmax_hw":
        relative = attention * (attention.shape[1] * attention.shape[2])
        return relative / (1 + relative)
    if method != "minmax":
        raise InputError(f"fusion.normalize = {method!r}: choose one of {NORMALIZATIONS}")
    lowest = attention.min((1, 2), keepdims=True)
    greatest = attention.max((1, 2), keepdims=True)
    flat = greatest - lowest < FLAT
    constant = jax.lax.stop_gradient
    attention = jnp.where(flat, constant(attention), attention)
    held = flat if grad_through_extrema else jnp.ones_like(flat)
    lowest = jnp.where(held, constant(lowest), lowest)
    greatest = jnp.where(held, constant(greatest), greatest)
    return (attention - lowest) / (greatest - lowest + EPSILON)


def encode_motion(
    motion: jax.Array, width: int, dtype: jnp.dtype, train: bool, valid: jax.Array | None
) -> jax.Array:
    """A motion map [N, g, g, C] as [N, g * g, width]; submodules flow_encoder_* of the caller."""
    x = Conv(FLOW_CHANNELS, 3, dtype=dtype, name="flow_encoder_0")(motion)
    x = nn.relu(BatchNorm(name="flow_encoder_1")(x, train=train, valid=valid))
    x = Linear(width, dtype=dtype, name="flow_encoder_3")(x)
    x = BatchNorm(name="flow_encoder_4")(x, train=train, valid=valid)
    return x.reshape(x.shape[0], -1, width)


def attend(
    query: jax.Array, keys: jax.Array, temperature: jax.Array, mode: str, dtype: jnp.dtype
) -> jax.Array:
    """Attention [N, G, S] of projected queries [N, G, C] over keys [N, S, G C].

    Creates the submodule k_proj of the caller. `temperature` is [1], used as `mode` says.
    """
    heads, channels = query.shape[1:]
    k = Linear(heads * channels, use_bias=False, dtype=dtype, name="k_proj")(keys)
    k = k.reshape(-1, keys.shape[1], heads, channels)
    wide = jnp.promote_types(dtype, jnp.float32)
    scores = jnp.einsum("ngc,nsgc->ngs", query, k, preferred_element_type=wide)
    temperature = temperature[0]
    if mode == "div":
        temperature = 1 / temperature
    return nn.softmax(scores * channels**-0.5 * temperature, axis=-1)


class MotionLevel(nn.Module):
    """Attention of a coarser grid, with a motion encoder and a temperature of its own."""

    temperature_mode: str
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, query: jax.Array, motion: jax.Array, train: bool, valid: jax.Array | None
    ) -> jax.Array:
        """Queries [N, G, C] and a motion map [N, g, g, C'] to [N, G, g * g]."""
        keys = encode_motion(motion, query.shape[1] * query.shape[2], self.dtype, train, valid)
        temperature = self.param("temperature", nn.initializers.ones, (1,))
        return attend(query, keys, temperature, self.temperature_mode, self.dtype)


def _are_levels(levels, config) -> bool:
    grid = look_up(config, "fusion.grid") or AMA.grid
    fit = [isinstance(n, int) and 0 < n < grid and grid % n == 0 for n in levels]
    return all(fit) and len(set(levels)) == len(levels)


class AMA(nn.Module):
    """The map of each frame from its sound and motion.

    Scores are multiplied or divided by the learned tau (parameter `temperature` [1], initially 1).
    Norms, scores and the map are at least float32.
    """

    embed_dim: int = 256
    num_heads: int = 4
    grid: int = 24  # cells per side of the map
    temperature_mode: str = "mul"
    normalize: str = "minmax"  # see `normalize_map`
    grad_through_extrema: bool = True  # likewise
    at: str = "queries"  # or "features", "both": where the map acts
    gate: bool = False  # see evidence_gate.py
    gate_temperature: float = 1.0
    levels: tuple[int, ...] = ()  # cells per side of coarser grids, divisors of `grid`
    temporal: str = "none"  # see motion_memory.py
    causal: bool = False  # likewise
    consistency: bool = False  # see above
    consistency_warmup: float = 0.2  # fraction of the training in which its loss ramps up
    attention_dropout: float = 0.0  # see above
    projection_dropout: float = 0.0
    map_dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32  # of the projections

    RULES = (
        *at_least(1, "fusion.embed_dim", "fusion.grid"),
        divides("fusion.num_heads", "fusion.embed_dim"),
        one_of("fusion.temperature_mode", TEMPERATURE_MODES),
        one_of("fusion.normalize", NORMALIZATIONS),
        one_of("fusion.at", AT),
        one_of("fusion.gate", (False, True)),
        one_of("fusion.temporal", KINDS),
        one_of("fusion.causal", (False, True)),
        Rule("fusion.levels", _are_levels, lambda _: "different divisors of fusion.grid below it"),
        one_of("fusion.consistency", (False, True)),
        within("fusion.consistency_warmup", lambda x: 0 <= x <= 1, "a fraction, 0..1"),
        within("fusion.gate_temperature", lambda x: x > 0, "above 0"),
        *(
            within(f"fusion.{name}_dropout", lambda x: 0 <= x < 1, "a rate, 0 <= rate < 1")
            for name in ("attention", "projection", "map")
        ),
    )

    @nn.compact
    def __call__(
        self,
        audio: jax.Array,
        motion: jax.Array,
        mask_features: jax.Array | None = None,
        log_mel: jax.Array | None = None,
        *,
        train: bool = False,
        valid: jax.Array | None = None,
        ids: jax.Array | None = None,
        num_frames: int = 1,
    ) -> tuple[jax.Array, dict]:
        """The map [N, grid, grid], float32; and {"attention": [N, G, grid^2]}.

        Args:
          audio: [N, D], mean audio feature of each frame.
          motion: [N, H, W, C], a motion map of any size: strengths (C = 1) or vectors (C = 2).
          mask_features: [N, h, w, D], which the map changes unless `at` is "queries", and which
            the gate reads.
          log_mel: [N, 96, 64], read by the gate.
          train: the BatchNorms use and record the statistics of the batch; the dropouts draw from
            the rng stream "ama_dropout".
          valid: bool [N], frames that count in those statistics; None for all.
          ids: int32 [N], from `spec.frame_ids`. Draws depend on the frame's id, those of
            map_dropout on its clip. None: one frame from each of N clips.
          num_frames: of each clip in N, read by `temporal`.

        Returns:
          map [N, grid, grid], float32; and {"attention": [N, G, grid^2]}, with "mask_features"
          [N, h, w, D] if `at` is not "queries", "gate" [N] if there is one, and with `consistency`
          what losses/consistency.py reads of each frame.
        """
        if ids is None:
            ids = jnp.arange(audio.shape[0]) * FRAMES_PER_CLIP
        width, heads, grid = self.embed_dim, self.num_heads, self.grid
        small = resize_bilinear(motion.astype(self.dtype), (grid, grid))
        keys = encode_motion(small, width, self.dtype, train, valid)
        memory = {"num_heads": heads, "causal": self.causal, "dtype": self.dtype}
        keys = remember(keys, self.temporal, num_frames, valid, **memory)
        query = Linear(width, dtype=self.dtype, name="audio_proj_0")(audio)
        query = LayerNorm(name="audio_proj_1")(query)

        q = Linear(width, use_bias=False, dtype=self.dtype, name="q_proj")(query)
        if train:
            q = self._drop(q, self.projection_dropout, ids)
        q = q.reshape(-1, heads, width // heads)
        temperature = self.param("temperature", nn.initializers.ones, (1,))
        attention = attend(q, keys, temperature, self.temperature_mode, self.dtype)
        whole = attention.mean(1).reshape(-1, grid, grid)  # without dropout
        if train:
            attention = self._drop(attention, self.attention_dropout, ids, rest=1 / grid**2)
        mean = attention.mean(1).reshape(-1, grid, grid)
        if self.levels:
            mean, whole = self._add_levels((mean, whole), q, small, train, valid)
        weight = normalize_map(mean, self.normalize, self.grad_through_extrema)
        if train and self.map_dropout:
            kept = self._draw_kept(self.map_dropout, ids // FRAMES_PER_CLIP, (1, 1))
            weight = jnp.where(kept, weight, 0)
        intermediates = {"attention": attention}
        if self.consistency:
            embeddings = self._embed(attention, keys, audio)
            wide = jnp.promote_types(self.dtype, jnp.float32)
            strength = jnp.square(motion.astype(wide)).sum(-1).mean((1, 2))
            intermediates |= embeddings | {"motion_energy": strength, "motion_attention": whole}
            intermediates["motion_cells"] = jnp.square(small.astype(wide)).sum(-1)
        used = weight
        if self.gate:
            gate = EvidenceGate(self.gate_temperature, name="gate")
            intermediates["gate"] = gate(mask_features, audio, motion, log_mel)
            used = weight * intermediates["gate"][:, None, None]
        if self.at != "queries":
            intermediates["mask_features"] = self._change(mask_features, used)
        return weight, intermediates

    def _add_levels(self, finest, query, motion, train, valid) -> list[jax.Array]:
        """Maps [N, grid, grid] of the finest grid, each with the other grids added, all weighted.

        `motion` is that of the finest grid.
        """
        shape = (1 + len(self.levels),)
        weights = nn.softmax(self.param("level_weights", nn.initializers.zeros, shape))
        mixed = [weights[0] * attention for attention in finest]
        for weight, side in zip(weights[1:], self.levels, strict=True):
            cell = self.grid // side
            pooled = motion.reshape(motion.shape[0], side, cell, side, cell, -1).mean((2, 4))
            level = MotionLevel(self.temperature_mode, self.dtype, name=f"level_{side}")
            mean = level(query, pooled, train, valid).mean(1).reshape(-1, side, side, 1)
            mean = resize_bilinear(mean, (self.grid, self.grid))[..., 0]
            mixed = [attention + weight / cell**2 * mean for attention in mixed]
        return mixed

    def _embed(self, attention, keys, audio) -> dict[str, jax.Array]:
        """What the map looks at and what is heard, unit vectors float32 [N, E]."""
        width, heads = self.embed_dim, self.num_heads
        values = Linear(width, use_bias=False, dtype=self.dtype, name="v_proj")(keys)
        values = values.reshape(*values.shape[:2], heads, width // heads)
        seen = jnp.einsum("ngs,nsgc->ngc", attention, values.astype(attention.dtype))
        seen = Linear(width, name="motion_embed")(seen.reshape(-1, width))
        heard = Linear(width, name="audio_embed")(audio)
        return {
            "motion_embed": normalize(seen, SHORT),
            "motion_audio_embed": normalize(heard, SHORT),
        }

    def _change(self, features: jax.Array, weight: jax.Array) -> jax.Array:
        """The mask features with the map [N, grid, grid] added."""
        upsampled = resize_bilinear(weight[..., None], features.shape[1:3])
        update = Linear(
            features.shape[-1],
            use_bias=False,
            kernel_init=nn.initializers.zeros,
            dtype=self.dtype,
            name="feature_proj",
        )
        return features + update(upsampled).astype(features.dtype)

    def _drop(self, x: jax.Array, rate: float, ids: jax.Array, rest: float = 0.0) -> jax.Array:
        """Dropout that sets values to `rest` instead of 0 and preserves the mean."""
        if not rate:
            return x
        kept = self._draw_kept(rate, ids, x.shape[1:])
        return rest + jnp.where(kept, x - rest, 0) / (1 - rate)

    def _draw_kept(self, rate: float, ids: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """bool [N, *shape], True with probability 1 - rate; equal ids draw the same."""
        key = self.make_rng("ama_dropout")

        def draw(i):
            return jax.random.bernoulli(jax.random.fold_in(key, i), 1 - rate, shape)

        return jax.vmap(draw)(ids)


def _apply(module: AMA, inputs: StageInputs) -> StageResult:
    weight, intermediates = module(
        inputs.audio.mean((1, 2)),
        inputs.fields["motion"],
        inputs.mask_features,
        inputs.fields["log_mel"],
        train=inputs.train,
        valid=inputs.valid,
        ids=inputs.ids,
        num_frames=inputs.num_frames,
    )
    upsampled, outputs = None, {"motion_weight": weight}
    if module.at != "features":
        upsampled = resize_bilinear(weight[..., None], inputs.mask_features.shape[1:3])[..., 0]
    if module.consistency:
        outputs |= {name: intermediates[name] for name in CONSISTENCY_OUTPUTS}
        done = inputs.progress / max(module.consistency_warmup, 1e-6)
        ramp = jnp.minimum(jnp.asarray(done, jnp.float32), 1.0)
        outputs["motion_ramp"] = jnp.broadcast_to(ramp, weight.shape[:1])
    if module.gate:
        outputs["motion_gate"] = intermediates["gate"]
        upsampled = None if upsampled is None else upsampled * intermediates["gate"][:, None, None]
    return StageResult(
        pixel_weights=upsampled,
        features=intermediates.get("mask_features"),
        outputs=outputs,
        intermediates=intermediates,
    )


STAGE = Stage(
    AMA,
    parameter="ama",
    acts_on=("pixel_weights", "features"),
    apply=_apply,
    reads=("motion", "log_mel"),
    outputs=("motion_weight", "motion_gate"),
    rng_streams=("ama_dropout",),
    logged_params={"tau": "ama/temperature"},
    frames_meet=lambda section: section.get("temporal", "none") != "none",
)
