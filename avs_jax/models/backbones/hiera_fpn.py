"""SAM2's image encoder as a backbone: Hiera and its feature pyramid, four maps of one width.

    r2 .. r5 = Hiera(image)
    p5 = W_5 r5      p4 = W_4 r4 + up2(p5)      p3 = W_3 r3      p2 = W_2 r2

Both come pretrained from a SAM2 file. Source: facebookresearch/sam2 (2b90b9f), ImageEncoder in
sam2/modeling/backbones/image_encoder.py; it drops p5, which is kept here, and narrows p3 and p2 for
its mask decoder, which is not done here.
"""

import dataclasses

import jax
import jax.numpy as jnp

from avs_jax.models.backbones.hiera import Hiera
from avs_jax.models.rules import at_least
from avs_jax.models.sam2.neck import Neck


class HieraFPN(Hiera):
    """Hiera with the pyramid.

    Attributes:
      width: channels of the four maps; 256 in SAM2.
    """

    width: int = 256

    RULES = (*Hiera.RULES, *at_least(1, "backbone.width"))

    def setup(self):
        names = {field.name for field in dataclasses.fields(Hiera)} - {"parent", "name"}
        self.trunk = Hiera(**{name: getattr(self, name) for name in names})
        self.neck = Neck(self.width, jnp.dtype(self.dtype))

    def __call__(
        self, x: jax.Array, train: bool = False, frame_ids: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """{"res2": [N, H / 4, W / 4, width], .., "res5"}; args as those of `Hiera`."""
        return self.neck(self.trunk(x, train, frame_ids))
