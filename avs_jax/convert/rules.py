"""Rules that carry tensors between a foreign state dict and a parameter tree, both ways.

A rule is one row: which source name, which place in the tree, and how the layout changes. Tables
of rules are in `tables.py`, as functions of the model's configuration. Trees are flat here:
{"backbone/norm0/scale": array}. Nothing is left over on either side without being named.
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from avs_jax.spec import InputError


def _linear(x: np.ndarray) -> np.ndarray:
    if x.ndim != 2:
        raise ValueError("a linear weight has 2 axes")
    return x.T


def _conv1x1(x: np.ndarray) -> np.ndarray:
    if x.shape[2:] != (1, 1):
        raise ValueError("the kernel is not 1 by 1")
    return x[:, :, 0, 0].T


# name -> (source layout -> ours, ours -> source layout)
TRANSFORMS: dict[str, tuple[Callable[..., np.ndarray], Callable[..., np.ndarray]]] = {
    "keep": (lambda x: x, lambda x: x),
    "linear": (_linear, _linear),  # [out, in] <-> [in, out]
    "conv": (  # [out, in, kh, kw] <-> [kh, kw, in, out]
        lambda x: np.transpose(x, (2, 3, 1, 0)),
        lambda x: np.transpose(x, (3, 2, 0, 1)),
    ),
    "conv1x1": (  # [out, in, 1, 1] <-> [in, out]
        _conv1x1,
        lambda x: x.T[:, :, None, None],
    ),
}


@dataclasses.dataclass(frozen=True)
class Rule:
    r"""One row of a table.

    Attributes:
      pattern: regular expression that must match the whole source name.
      target: path in the tree, "/"-separated, `\1` standing for a group; None = known and
        deliberately not taken.
      transform: key of TRANSFORMS.
      index: position along a leading axis, for layers that the model stacks and scans; None = not
        stacked.
    """

    pattern: str
    target: str | None
    transform: str = "keep"
    index: int | None = None


class ConversionError(InputError):
    """Every disagreement between a state dict and a tree, in one message."""


def apply_rules(
    source: Mapping[str, np.ndarray],
    rules: Sequence[Rule],
    shapes: Mapping[str, tuple[int, ...]],
    fresh: Sequence[str] = (),
    dtype: np.dtype | type | None = None,
) -> dict[str, np.ndarray]:
    """Carries a state dict into a flat tree.

    Args:
      source: name -> array, in the foreign layout.
      rules: the table; the first rule whose pattern matches a name counts.
      shapes: path -> shape of every leaf the tree must have.
      fresh: regular expressions of target paths that may stay unfilled (they keep their initial
        value).
      dtype: refuse every other; None takes all, and keeps them.

    Returns:
      path -> array; fresh leaves are absent.

    Raises:
      ConversionError: listing every unmatched source name, unfilled path, wrong shape or dtype, and
        double assignment.
    """
    compiled = [(re.compile(rule.pattern), rule) for rule in rules]
    problems: list[str] = []
    plain: dict[str, np.ndarray] = {}
    stacked: dict[str, dict[int, np.ndarray]] = {}
    # A wrong tensor is not also reported as a missing one: targets, and layers of their stacks.
    attempted: set[str] = set()
    layers: dict[str, set[int]] = {}
    for name, array in source.items():
        found = _first_match(compiled, name)
        if found is None:
            problems.append(f"source tensor {name} {np.shape(array)} matches no rule")
            continue
        rule, target = found
        if target is None:
            continue
        attempted.add(target)
        if rule.index is not None:
            layers.setdefault(target, set()).add(rule.index)
        try:
            value = TRANSFORMS[rule.transform][0](np.asarray(array))
        except (ValueError, IndexError) as error:
            problems.append(f"{name} {np.shape(array)}: not a {rule.transform} tensor ({error})")
            continue
        if target not in shapes:
            problems.append(f"{name} -> {target}: the model has no such parameter")
            continue
        want = tuple(shapes[target])[0 if rule.index is None else 1 :]
        if value.shape != want:
            expected = _source_shape(rule, want)
            problems.append(f"{name} -> {target}: shape {np.shape(array)}, expected {expected}")
            continue
        if dtype is not None and value.dtype != dtype:
            problems.append(f"{name} -> {target}: {value.dtype}, expected {np.dtype(dtype)}")
        slot = plain if rule.index is None else stacked.setdefault(target, {})
        key = target if rule.index is None else rule.index
        if rule.index is not None and rule.index >= shapes[target][0]:
            problems.append(f"{name} -> {target}: layer {rule.index} of {shapes[target][0]}")
        if key in slot:
            problems.append(f"{name} -> {target}: filled twice")
        slot[key] = value
    namer = _Namer(rules)
    for target, parts in stacked.items():
        count = shapes[target][0]
        missing = sorted(set(range(count)) - layers[target])
        if missing:
            names = ", ".join(filter(None, (namer(target, index) for index in missing)))
            problems.append(
                f"{target}: layers {missing} of {count} are not in the source"
                + (f": {names}" if names else "")
            )
        elif len(parts) == count:
            plain[target] = np.stack([parts[i] for i in range(count)])
    for path, shape in shapes.items():
        if path not in attempted and not any(re.fullmatch(pattern, path) for pattern in fresh):
            name = namer(path)
            problems.append(
                f"{path} {tuple(shape)}: nothing in the source fills it"
                + (f"; {name} would" if name else "")
            )
    if problems:
        raise ConversionError(f"{len(problems)} problem(s):\n  " + "\n  ".join(problems))
    return plain


def invert_rules(
    tree: Mapping[str, np.ndarray], rules: Sequence[Rule], names: Sequence[str]
) -> dict[str, np.ndarray]:
    """Carries a flat tree back: the arrays of `names` that the tree holds, in the foreign layout.

    Raises:
      ConversionError: listing names that match no rule and targets the tree does not hold.
    """
    compiled = [(re.compile(rule.pattern), rule) for rule in rules]
    problems, result = [], {}
    for name in names:
        found = _first_match(compiled, name)
        if found is None:
            problems.append(f"{name} matches no rule")
            continue
        rule, target = found
        if target is None:
            continue
        if target not in tree:
            problems.append(f"{name} <- {target}: the tree has no such parameter")
            continue
        value = np.asarray(tree[target])
        if rule.index is not None:
            value = value[rule.index]
        result[name] = np.asarray(TRANSFORMS[rule.transform][1](value), order="C")
    if problems:
        raise ConversionError(f"{len(problems)} problem(s):\n  " + "\n  ".join(problems))
    return result


def _source_shape(rule: Rule, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in the source layout of a leaf (one layer of it, where stacked)."""
    try:
        return TRANSFORMS[rule.transform][1](np.broadcast_to(np.float32(0), shape)).shape
    except (ValueError, IndexError):  # the leaf is nothing that this transform gives
        return shape


class _Namer:
    """Tells what a tensor would be called that a path lacks, where the table can be read backwards.

    A pattern is literal text, alternatives and groups; each group that the target repeats is known
    from the path.
    """

    def __init__(self, rules: Sequence[Rule]):
        self._rules = rules

    @functools.cached_property
    def _targets(self) -> list[tuple[re.Pattern, Rule]]:
        found = []
        for rule in self._rules:
            if rule.target is not None:
                text, *rest = re.split(r"\\(\d)", rule.target)
                pattern = re.escape(text)
                for group, text in zip(rest[::2], rest[1::2], strict=True):
                    pattern += f"(?P<g{group}>[^/]+)" + re.escape(text)
                found.append((re.compile(pattern), rule))
        return found

    def __call__(self, path: str, index: int | None = None) -> str:
        """The names, one per layout, joined by "or"; "" where it cannot be told.

        Args:
          index: of the layer, where the path is stacked; None: the first.
        """
        found = []
        for target, rule in self._targets:
            match = target.fullmatch(path)
            if not match or rule.index not in ((None, 0) if index is None else (index,)):
                continue
            numbers, known = itertools.count(1), match.groupdict()

            def fill(group, numbers=numbers, known=known):
                return known.get(f"g{next(numbers)}", group[0])

            compiled = [(re.compile(rule.pattern), rule)]
            for literal in _alternatives(re.sub(r"\((?!\?)[^()]*\)", fill, rule.pattern)):
                name = re.sub(r"\\(.)", r"\1", literal)
                if _first_match(compiled, name) == (rule, path) and name not in found:
                    found.append(name)
        return " or ".join(found)


def _alternatives(pattern: str) -> list[str]:
    """Every choice of the groups (?:a|b) and (?:a)? of a pattern."""
    group = re.search(r"\(\?:([^()]*)\)(\??)", pattern)
    if group is None:
        return [pattern]
    choices = group[1].split("|") + [""] * bool(group[2])
    before, after = pattern[: group.start()], pattern[group.end() :]
    return [text for choice in choices for text in _alternatives(before + choice + after)]


def _first_match(compiled, name):
    for pattern, rule in compiled:
        match = pattern.fullmatch(name)
        if match:
            return rule, None if rule.target is None else match.expand(rule.target)
    return None
