"""Tables of the parts that a configuration chooses by name, and how parts are built.

A new part takes a file, a row here, a configuration and a test.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn

from avs_jax.models.backbones.ast import AST
from avs_jax.models.backbones.clip_vit import CLIPViT
from avs_jax.models.backbones.hiera import Hiera
from avs_jax.models.backbones.hiera_fpn import HieraFPN
from avs_jax.models.backbones.pvt_v2 import PVTv2
from avs_jax.models.backbones.resnet import ResNet
from avs_jax.models.backbones.swin import Swin
from avs_jax.models.backbones.vggish import VGGish
from avs_jax.models.decoders import boundary
from avs_jax.models.decoders.localizer import TextToPixel
from avs_jax.models.decoders.referral import ReferralHead
from avs_jax.models.fusion import ama, cma, query_fusion, sync
from avs_jax.models.rules import Rule, check_rules
from avs_jax.models.temporal.divided import DividedEncoder
from avs_jax.models.text.clip_text import CLIPText
from avs_jax.models.text.encoder import TextEncoder
from avs_jax.spec import InputError, nearest

# Section of config.model -> name -> module or stage; None if the part is absent.
# Map backbones give four maps, the others a vector per frame.
MAP_BACKBONES = {
    "swin": Swin,
    "pvt_v2": PVTv2,
    "resnet50": ResNet,
    "hiera": Hiera,
    "hiera_fpn": HieraFPN,
}
BACKBONES = {**MAP_BACKBONES, "clip_vit": CLIPViT}
MAP_AUDIO_BACKBONES = {"vggish": VGGish}
AUDIO_BACKBONES = {**MAP_AUDIO_BACKBONES, "ast": AST}
# The first two differ in size and weights and give tokens, CLIP's a vector per text.
TOKEN_ENCODERS = {"tiny": TextEncoder, "roberta": TextEncoder}
TEXT_ENCODERS = {"none": None, **TOKEN_ENCODERS, "clip": CLIPText}
FUSIONS = {
    "none": None,
    "ama": ama.STAGE,
    "cma": cma.STAGE,
    "query_fusion": query_fusion.STAGE,
    "sync": sync.STAGE,
}
REFINERS = {"none": None, "auxiliary": boundary.AUXILIARY, "refine": boundary.REFINE}
TEMPORALS = {"none": None, "divided": DividedEncoder}
HEADS = {"none": None, "referral": ReferralHead}
LOCALIZERS = {"none": None, "text_to_pixel": TextToPixel}
TABLES = {
    "backbone": BACKBONES,
    "audio_backbone": AUDIO_BACKBONES,
    "text": TEXT_ENCODERS,
    "temporal": TEMPORALS,
    "fusion": FUSIONS,
    "refiner": REFINERS,
    "head": HEADS,
    "localizer": LOCALIZERS,
}


def find_part(section: str, config: Mapping[str, Any]) -> Any:
    """The row that a section's `name` chooses; InputError if there is none."""
    table, name = TABLES[section], config.get("name")
    if name not in table:
        raise InputError(f"model.{section}.name = {name!r}: choose one of {sorted(table)}")
    return table[name]


def find_rows(section: str, config: Mapping[str, Any]) -> dict[str, tuple[Any, Mapping]]:
    """Dotted section -> (row, its keys) of what a section chooses; {} if the part is absent.

    Names joined by "+", such as "ama+sync", are rows that all act, in this order. Then each has its
    keys in a subsection of its name.

    Raises:
      InputError: no such row, one that is listed twice, or a subsection of none that is listed.
    """
    name = config.get("name")
    if not isinstance(name, str) or "+" not in name:
        row = find_part(section, config)
        return {} if row is None else {section: (row, config)}
    names, rows = name.split("+"), {}
    for part in names:
        own = {"name": part, **config.get(part, {})}
        row = find_part(section, own)
        if row is None or names.count(part) > 1:
            raise InputError(f"model.{section}.name = {name!r}: {part!r} cannot be in a list")
        rows[f"{section}.{part}"] = row, own
    for key in set(config) - {"name", *names}:
        raise InputError(
            f"model.{section}.{key}: {name!r} has only the subsections {', '.join(names)}"
        )
    return rows


def make_part(section: str, module: type, config: Mapping[str, Any], **fields: Any) -> nn.Module:
    """A module with the keys of its section as fields, except `name`; InputError for others."""
    known = {field.name for field in dataclasses.fields(module)} - {"parent", "name"} - set(fields)
    given = {key: value for key, value in config.items() if key != "name"}
    for key in given:
        if key not in known:
            raise InputError(
                f"model.{section}.{key}: {module.__name__} has no such field; "
                f"nearest: {nearest(key, sorted(known)) or sorted(known)}"
            )
    return module(**given, **fields)


def check_parts(config: Mapping[str, Any], own_rules: Sequence[Rule] = ()) -> None:
    """Checks config.model: that every part exists, then its values, then those of the parts.

    Args:
      own_rules: of the model itself.

    Raises:
      InputError: naming the first key that is wrong.
    """
    sections = sorted(TABLES.keys() & config.keys())
    rows = {section: find_rows(section, config[section]) for section in sections}
    check_rules(own_rules, config)
    for section, found in rows.items():
        for place, (row, own) in found.items():
            rules = getattr(getattr(row, "module", row), "RULES", ())
            check_rules(rules, {**config, section: own}, (section, place))
