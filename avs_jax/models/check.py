"""What the values of a model configuration must fulfil: a table, read before anything is built.

A row names a key, what it may be, and says so in words. Rows of a part count where the part is
chosen. What is wrong here would otherwise surface as a shape error deep inside a trace.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from avs_jax.models.fusion.ama import NORMALIZATIONS, TEMPERATURE_MODES
from avs_jax.spec import InputError

Config = Mapping[str, Any]
DTYPES = ("float32", "bfloat16", "float64")
REMAT_POLICIES = ("none", "backbone", "all")  # what the backward pass recomputes
GROUPS = 32  # of channels, of every GroupNorm
STAGES = 4  # of a Swin


class Rule(NamedTuple):
    """A requirement of one value.

    Attributes:
      key: of config.model, "." between levels.
      holds: (value, config.model) -> bool.
      wanted: (config.model) -> what the value may be, in words.
    """

    key: str
    holds: Callable[[Any, Config], bool]
    wanted: Callable[[Config], str]


def at_least(least: int, *keys: str) -> list[Rule]:
    """Whole numbers from `least` on."""

    def holds(value, _):
        return isinstance(value, int) and value >= least

    return [Rule(key, holds, lambda _: f"a whole number, at least {least}") for key in keys]


def within(key: str, holds: Callable[[float], bool], wanted: str) -> Rule:
    """A number in an interval."""
    return Rule(key, lambda value, _: holds(value), lambda _: wanted)


def one_of(key: str, choices: Sequence[str]) -> Rule:
    """A word of a list."""
    return Rule(key, lambda value, _: value in choices, lambda _: f"one of {list(choices)}")


def divides(key: str, width_key: str) -> Rule:
    """A number of heads that shares the channels of `width_key` evenly."""

    def holds(heads, config):
        return heads >= 1 and look_up(config, width_key) % heads == 0

    def wanted(config):
        width = look_up(config, width_key)
        return f"a divisor of model.{width_key} = {width}: one of {divisors(width)}"

    return Rule(key, holds, wanted)


def _has_heads_per_stage(heads: Sequence[int], config: Config) -> bool:
    widths = _stage_widths(config)
    return len(heads) == STAGES and all(
        n >= 1 and width % n == 0 for n, width in zip(heads, widths, strict=True)
    )


def _stage_widths(config: Config) -> list[int]:
    return [config["backbone"]["embed_dim"] * 2**stage for stage in range(STAGES)]


RAMP = Rule(
    "refiner.ramp",
    lambda ramp, _: len(ramp) == 2 and 0 <= ramp[0] <= ramp[1] <= 1,
    lambda _: "(start, end) with 0 <= start <= end <= 1",
)
WHOLE_MODEL = [
    *at_least(2, "num_classes"),
    *at_least(0, "num_prototypes"),
    *at_least(1, "num_queries", "audio_hidden_dim"),
    within("hidden_dim", lambda x: x > 0 and x % GROUPS == 0, f"a multiple of {GROUPS}"),
    within("pre_mask_dropout", lambda x: 0 <= x <= 1, "a share, 0..1"),
    within("audio_std", lambda x: x > 0, "above 0"),
    *at_least(1, *(f"pixel_decoder.{key}" for key in ("num_layers", "ffn_dim", "num_points"))),
    divides("pixel_decoder.num_heads", "hidden_dim"),
    *at_least(1, "decoder.num_layers", "decoder.ffn_dim"),
    divides("decoder.num_heads", "hidden_dim"),
    one_of("remat", REMAT_POLICIES),
    one_of("dtype", DTYPES),
]
PARTS = {
    ("backbone", "swin"): [
        *at_least(1, "backbone.embed_dim", "backbone.window_size"),
        within(
            "backbone.depths",
            lambda x: len(x) == STAGES and min(x) >= 1,
            f"{STAGES} numbers, each at least 1",
        ),
        Rule(
            "backbone.num_heads",
            _has_heads_per_stage,
            lambda config: (
                f"{STAGES} numbers that divide {_stage_widths(config)}, the stages' "
                f"channels (model.backbone.embed_dim = {config['backbone']['embed_dim']})"
            ),
        ),
        within("backbone.drop_path_rate", lambda x: 0 <= x < 1, "a rate, 0 <= rate < 1"),
    ],
    ("audio_backbone", "vggish"): at_least(1, "audio_backbone.width"),
    ("fusion", "ama"): [
        *at_least(1, "fusion.embed_dim", "fusion.grid"),
        divides("fusion.num_heads", "fusion.embed_dim"),
        one_of("fusion.temperature_mode", TEMPERATURE_MODES),
        one_of("fusion.normalize", NORMALIZATIONS),
    ],
    ("refiner", "auxiliary"): [RAMP],
    ("refiner", "refine"): [RAMP],
}


def check_model_config(config: Config) -> None:
    """Checks every value; a key that is absent has its module's own value.

    Args:
      config: config.model as nested dicts, whose parts exist.

    Raises:
      InputError: naming the first key at fault, its value and what it may be.
    """
    chosen = {(section, config[section]["name"]) for section, _ in PARTS}
    rules = [*WHOLE_MODEL, *(rule for part in PARTS if part in chosen for rule in PARTS[part])]
    for rule in rules:
        value = look_up(config, rule.key)
        if value is None:
            continue
        try:
            fits = rule.holds(value, config)
        except TypeError:  # of another kind altogether, such as a word for a number
            fits = False
        if not fits:
            raise InputError(f"model.{rule.key} = {value!r}: expected {rule.wanted(config)}")


def look_up(config: Config, key: str) -> Any:
    """The value of a "."-separated key; None where it is absent."""
    value: Any = config
    for name in key.split("."):
        if name not in value:
            return None
        value = value[name]
    return value


def divisors(number: int) -> list[int]:
    """All, in order."""
    return [n for n in range(1, number + 1) if number % n == 0]
