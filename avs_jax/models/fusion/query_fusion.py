"""The sound into the queries: the fusions of clip_fusion.py, for each query instead of a clip.

  q' = q + W_o f(q, a),  W_o initially 0

q are the queries that PPQG generates from the image, a the audio tokens of their frame. f is

  early, late_feature, attention, film   of each query and the mean of the audio tokens
  gated, cross                           of all queries and all audio tokens: each query takes the
                                         place of a frame's token, and cross has no class token

So the initial queries, and the first prediction, know the sound; without this part, queries meet it
in the decoder's first layer. A model without it gives the same masks with it, until it is trained.
late_logit is left out: it weighs class scores of frames and of sound; here, sound alone has none.

Source: ours, from the fusions of task classify.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.models.fusion.clip_fusion import (
    TOKENS,
    VECTORS,
    ClipTokens,
    attend_behind_gates,
    attend_together,
    fuse_vectors,
)
from avs_jax.models.fusion.gated import pool_tokens
from avs_jax.models.layers import Linear
from avs_jax.models.rules import Rule, divides, look_up
from avs_jax.models.stage import Stage, StageInputs, StageResult
from avs_jax.models.transformer import INIT

KINDS = (*VECTORS, *TOKENS)


def _choices(config) -> str:
    reason = "; late_logit weighs class scores, and here the sound alone has none"
    return f"one of {list(KINDS)}" + reason * (look_up(config, "fusion.kind") == "late_logit")


class QueryFusion(nn.Module):
    """See the module's docstring.

    Attributes:
      kind: one of KINDS.
      num_heads: of gated and cross.
      dtype: of matrix products; weights, gates and softmax are float32 at least.
    """

    kind: str = "gated"
    num_heads: int = 8
    dtype: jnp.dtype = jnp.float32

    RULES = (
        Rule("fusion.kind", lambda kind, _: kind in KINDS, _choices),
        divides("fusion.num_heads", "hidden_dim"),
    )

    @nn.compact
    def __call__(self, queries: jax.Array, audio: jax.Array) -> jax.Array:
        """Queries [N, Q, D] and audio tokens [N, 6, 4, D] -> [N, Q, D], in the queries' dtype."""
        count, _, width = queries.shape
        audio = audio.reshape(count, -1, width)
        if self.kind in VECTORS:
            fused = self._fuse_each(queries, audio)
        elif self.kind == "gated":
            clip = ClipTokens(queries, audio, jnp.ones((count, 2), bool))
            fused = attend_behind_gates(clip, self.num_heads, self.dtype)
        else:
            codes = self.param("modality_embedding", INIT, (2, width))
            parts = [
                (x + code[None, None], jnp.ones(x.shape[:2], bool))
                for x, code in zip((queries, audio), codes, strict=True)
            ]
            fused = attend_together(parts, self.num_heads, self.dtype)
        zeros = nn.initializers.zeros
        out = Linear(width, use_bias=False, kernel_init=zeros, dtype=self.dtype, name="out_proj")
        return queries + out(fused).astype(queries.dtype)

    def _fuse_each(self, queries: jax.Array, audio: jax.Array) -> jax.Array:
        width = queries.shape[-1]
        heard = jnp.broadcast_to(pool_tokens(audio, None), queries.shape).reshape(-1, width)
        asked = queries.reshape(-1, width).astype(heard.dtype)
        present = jnp.ones((asked.shape[0], 2), bool)
        fused, _ = fuse_vectors(self.kind, asked, heard, present, self.dtype)
        return fused.reshape(queries.shape)


def _apply(module: QueryFusion, inputs: StageInputs) -> StageResult:
    return StageResult(update_queries=lambda queries: module(queries, inputs.audio))


STAGE = Stage(QueryFusion, parameter="query_fusion", acts_on=("update_queries",), apply=_apply)
