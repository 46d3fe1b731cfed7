"""Rules for the values of a model configuration, checked before anything is traced.

A module lists its `RULES` and those of its fixed parts. Without them, a bad value would surface as
a shape error deep inside a trace.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from avs_jax.spec import InputError

Config = Mapping[str, Any]
STAGES = 4  # of a hierarchical backbone


class Rule(NamedTuple):
    """A requirement on one value."""

    key: str  # dotted, of config.model
    holds: Callable[[Any, Config], bool]  # (value, config.model)
    wanted: Callable[[Config], str]  # config.model -> the allowed values, in words


def at_least(least: int, *keys: str) -> list[Rule]:
    def holds(value, _):
        return isinstance(value, int) and value >= least

    return [Rule(key, holds, lambda _: f"a whole number, at least {least}") for key in keys]


def within(key: str, holds: Callable[[float], bool], wanted: str) -> Rule:
    return Rule(key, lambda value, _: holds(value), lambda _: wanted)


def one_of(key: str, choices: Sequence[str]) -> Rule:
    return Rule(key, lambda value, _: value in choices, lambda _: f"one of {list(choices)}")


def per_stage(*keys: str) -> list[Rule]:
    """One positive number per stage."""

    def holds(values, _):
        return len(values) == STAGES and min(values) >= 1

    return [Rule(key, holds, lambda _: f"{STAGES} numbers, each at least 1") for key in keys]


def divides(key: str, width_key: str) -> Rule:
    """A number of heads that divides the channels of `width_key`."""

    def holds(heads, config):
        width = look_up(config, width_key)  # None: the module's default
        return heads >= 1 and (width is None or width % heads == 0)

    def wanted(config):
        width = look_up(config, width_key) or 0
        divisors = [n for n in range(1, width + 1) if width % n == 0]
        return f"a divisor of model.{width_key} = {width}: one of {divisors}"

    return Rule(key, holds, wanted)


def nested(section: str, rules: Sequence[Rule]) -> list[Rule]:
    """The rules of a model that is a section of another one's configuration."""

    def move(rule):
        return Rule(
            f"{section}.{rule.key}",
            lambda value, config: rule.holds(value, config[section]),
            lambda config: rule.wanted(config[section]),
        )

    return [move(rule) for rule in rules]


def check_rules(rules: Sequence[Rule], config: Config, place: tuple[str, str] = ("", "")) -> None:
    """Raises InputError for the first invalid key of config.model, nested dicts.

    Absent keys have the module's default.

    Args:
      place: (section in the rules' keys, where its keys really are), for messages.
    """
    section, real = place
    for rule in rules:
        value = look_up(config, rule.key)
        if value is None:
            continue
        try:
            fits = rule.holds(value, config)
        except TypeError:  # for example a string where a number belongs
            fits = False
        if not fits:
            key = re.sub(rf"^{section}(?=\.)", real, rule.key) if section else rule.key
            raise InputError(f"model.{key} = {value!r}: expected {rule.wanted(config)}")


def look_up(config: Config, key: str) -> Any:
    """The value of a dotted key, or None."""
    value: Any = config
    for name in key.split("."):
        if name not in value:
            return None
        value = value[name]
    return value
