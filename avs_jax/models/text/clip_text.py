"""CLIP's text transformer: token ids to one vector.

  x = word[id] + positions -> causal blocks -> LN -> x at the end of the text

The end is the first token `eos_id`, or the first token of the largest id ("argmax", the original's,
where the end has the largest id of all). A text without an end is pooled at its first token by
"eos". Padding behind the end changes nothing, because no token sees what follows it.

Source: Radford et al. (ICML 2021), as in Hugging Face's modeling_clip.py.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.models.layers import LayerNorm
from avs_jax.models.rules import at_least, divides, one_of
from avs_jax.models.transformer import ACTIVATIONS, INIT, Block
from avs_jax.spec import check_shape

POOLINGS = ("eos", "argmax")


class CLIPText(nn.Module):
    """The encoder; the defaults are those of ViT-B/32 and ViT-B/16.

    Attributes:
      vocab_size: ids are below it.
      max_positions: tokens of the longest text.
      hidden_dim: width.
      num_layers, num_heads, ffn_dim: of the transformer.
      activation: "quick_gelu" (OpenAI's weights) or "gelu" (LAION's).
      pooling: one of POOLINGS.
      eos_id: id of the end of a text.
      dtype: of matrix products; parameters, norms and softmax are float32.
    """

    vocab_size: int = 49408
    max_positions: int = 77
    hidden_dim: int = 512
    num_layers: int = 12
    num_heads: int = 8
    ffn_dim: int = 2048
    activation: str = "quick_gelu"
    pooling: str = "eos"
    eos_id: int = 49407
    dtype: str = "float32"

    RULES = (
        *at_least(1, *(f"text.{key}" for key in ("vocab_size", "max_positions", "hidden_dim"))),
        *at_least(1, "text.num_layers", "text.ffn_dim"),
        divides("text.num_heads", "text.hidden_dim"),
        one_of("text.activation", sorted(ACTIVATIONS)),
        one_of("text.pooling", POOLINGS),
    )

    @nn.compact
    def __call__(
        self,
        ids: jax.Array,
        mask: jax.Array | None = None,
        collect: dict[str, jax.Array] | None = None,
    ) -> jax.Array:
        """Encodes texts.

        Args:
          ids: int32 [N, L].
          mask: bool [N, L], True where the token exists; None: all do.
          collect: receives embeddings, the result of every layer, last and pooled.

        Returns:
          [N, hidden_dim] in `dtype`.

        Raises:
          ValueError: a wrong shape, or more tokens than there are positions.
        """
        sizes = check_shape("ids", ids, "N L")
        length, dtype = sizes["L"], jnp.dtype(self.dtype)
        if length > self.max_positions:
            raise ValueError(f"ids: {length} tokens, more than max_positions {self.max_positions}")
        hidden = jnp.triu(jnp.ones((length, length), bool), k=1)[None, None]
        if mask is not None:
            check_shape("mask", mask, "N L", **sizes)
            hidden = hidden | ~mask[:, None, None]
        words = self.param("word_embedding", INIT, (self.vocab_size, self.hidden_dim))
        places = self.param("position_embedding", INIT, (self.max_positions, self.hidden_dim))
        steps = {} if collect is None else collect
        x = steps["embeddings"] = words[ids].astype(dtype) + places[None, :length].astype(dtype)
        for i in range(self.num_layers):
            block = Block(
                self.num_heads, self.ffn_dim, self.activation, dtype=dtype, name=f"layers_{i}"
            )
            x = steps[f"layer{i}"] = block(x, hidden)
        x = steps["last"] = LayerNorm(name="norm")(x)
        end = ids == self.eos_id if self.pooling == "eos" else ids
        end = jnp.argmax(end, axis=1)[:, None, None]
        steps["pooled"] = jnp.take_along_axis(x, end, axis=1)[:, 0]
        return steps["pooled"]
