"""Expressions that single out one object of a clip, or none: by look, by sound, by time, by both.

An expression is a look ("the red star", "the striped one", or just "the one"), which leaves a group
of objects, and perhaps a sound ("making the low sound") or a time ("that starts first"), which
picks one of the group:

  look   "the red star"                     a look that fits one object only
  sound  "the one making the low sound"     all objects, picked by sound
  time   "the one that starts first"        all objects, picked by when they sound
  both   "the striped one that sounds"      a look that fits several, picked by sound or time
  null   see `null_expressions`             fits nothing

A phrase is used only where it is unambiguous. Times differ by at least MARGIN_SECONDS. What a sound
or a time picks is the only object of its class in the clip, because the timbre of a class is what
ties a sound to an object.
"""

import dataclasses
from collections.abc import Iterator, Sequence

MARGIN_SECONDS = 2
LOOKS = (  # template -> the attributes of an object that it names
    ("the {color} {shape}", ("color", "shape")),
    ("the {pattern} {shape}", ("pattern", "shape")),
    ("the {shape}", ("shape",)),
    ("the {color} one", ("color",)),
    ("the {pattern} one", ("pattern",)),
    ("the {pattern} {color} one", ("pattern", "color")),
)
NULL_KINDS = ("null_c", "null_m")


@dataclasses.dataclass(frozen=True)
class Thing:
    """What can be said about an object."""

    fid: int  # which object of the clip it is
    class_name: str
    shape: str
    color: str
    pattern: str
    register: str  # "low", "high", or "" if it makes no sound
    start: int  # seconds in which it moves, and sounds unless it is silent: [start, stop)
    stop: int


@dataclasses.dataclass(frozen=True)
class Expression:
    """A text and the object that it refers to."""

    text: str
    kind: str  # "look", "sound", "time", "both", "null_c" or "null_m"
    target: Thing | None


def expressions(things: Sequence[Thing]) -> list[Expression]:
    """Every unambiguous expression for the objects of a clip, without the null ones."""
    found = []
    for kind, phrases in (("sound", _pick_by_sound), ("time", _pick_by_time)):
        for phrase, target in phrases(things):
            found.append(Expression(f"the one {phrase}", kind, target))
    for look, group in _groups(things):
        if len(group) == 1:
            found.append(Expression(look, "look", group[0]))
            continue
        for phrases in (_pick_by_sound, _pick_by_time):
            for phrase, target in phrases(group):
                found.append(Expression(f"{look} {phrase}", "both", target))
    classes = [thing.class_name for thing in things]
    return [
        expression
        for expression in found
        if expression.kind == "look" or classes.count(expression.target.class_name) == 1
    ]


def null_expressions(
    things: Sequence[Thing], colors: Sequence[str], shapes: Sequence[str]
) -> list[Expression]:
    """Expressions that fit no object of a clip.

    null_c: no object looks like that ("the green star"), though its color or shape may occur.
    null_m: something looks like that, but the sound is wrong ("the red star that sounds" while it
    is silent); or no audible object sounds like that ("the one making the low sound").

    Args:
      things: the objects.
      colors: the color words in use.
      shapes: the shape words in use.
    """
    looks = {(thing.color, thing.shape) for thing in things}
    found = [
        Expression(f"the {color} {shape}", "null_c", None)
        for color in colors
        for shape in shapes
        if (color, shape) not in looks
        and (any(color == look[0] for look in looks) or any(shape == look[1] for look in looks))
    ]
    for look, group in _groups(things):
        if len(group) == 1:
            wrong = "that makes no sound" if group[0].register else "that sounds"
            found.append(Expression(f"{look} {wrong}", "null_m", None))
    registers = {thing.register for thing in things if thing.register}
    if len(registers) == 1:
        (other,) = {"low", "high"} - registers
        found.append(Expression(f"the one making the {other} sound", "null_m", None))
    return found


def _groups(things: Sequence[Thing]) -> Iterator[tuple[str, list[Thing]]]:
    """Every look that fits at least one object, once, and the objects that it fits."""
    seen = set()
    for template, attributes in LOOKS:
        for thing in things:
            text = template.format(**dataclasses.asdict(thing))
            if text not in seen:
                seen.add(text)
                fits = [
                    other
                    for other in things
                    if all(getattr(other, name) == getattr(thing, name) for name in attributes)
                ]
                yield text, fits


def _pick_by_sound(group: Sequence[Thing]) -> Iterator[tuple[str, Thing]]:
    """Phrases about sound that fit exactly one of several objects."""
    audible = [thing for thing in group if thing.register]
    silent = [thing for thing in group if not thing.register]
    if len(audible) == 1 and silent:
        yield "that sounds", audible[0]
    if len(silent) == 1 and audible:
        yield "that makes no sound", silent[0]
    if len(audible) >= 2:
        for register in ("low", "high"):
            fits = [thing for thing in audible if thing.register == register]
            if len(fits) == 1:
                yield f"making the {register} sound", fits[0]


def _pick_by_time(group: Sequence[Thing]) -> Iterator[tuple[str, Thing]]:
    """Phrases about when the audible ones of several objects start and stop."""
    audible = [thing for thing in group if thing.register]
    if len(audible) < 2:
        return
    by_start = sorted(audible, key=lambda thing: thing.start)
    by_stop = sorted(audible, key=lambda thing: thing.stop)
    if by_start[1].start - by_start[0].start >= MARGIN_SECONDS:
        yield "that starts first", by_start[0]
    if by_start[-1].start - by_start[-2].start >= MARGIN_SECONDS:
        yield "that starts last", by_start[-1]
    if by_stop[1].stop - by_stop[0].stop >= MARGIN_SECONDS:
        yield "that stops first", by_stop[0]
