"""Backbones by the name that a configuration gives them."""

import flax.linen as nn

from avs_jax.models.backbones.swin import Swin
from avs_jax.models.backbones.vggish import VGGish
from avs_jax.spec import InputError

VISUAL_BACKBONES: dict[str, type[nn.Module]] = {"swin": Swin}
AUDIO_BACKBONES: dict[str, type[nn.Module]] = {"vggish": VGGish}


def visual_backbone(name: str) -> type[nn.Module]:
    """The class that `config.model.backbone.name` names: images to res2 .. res5.

    Raises:
      ValueError: naming the choices.
    """
    return _look_up(VISUAL_BACKBONES, name, "model.backbone.name")


def audio_backbone(name: str) -> type[nn.Module]:
    """The class that `config.model.audio_backbone.name` names: log-mels to a convolution map.

    Raises:
      ValueError: naming the choices.
    """
    return _look_up(AUDIO_BACKBONES, name, "model.audio_backbone.name")


def _look_up(table: dict[str, type[nn.Module]], name: str, key: str) -> type[nn.Module]:
    if name not in table:
        raise InputError(f"{key}: {name!r} is not one of {', '.join(sorted(table))}")
    return table[name]
