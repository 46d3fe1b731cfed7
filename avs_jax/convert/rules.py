"""Rules that map tensors between a foreign state dict and a parameter tree, both ways.

A rule is one row: a source name, a path in the tree, and the change of layout. `tables.py` builds
tables of rules from the model's configuration. Trees are flat: {"backbone/norm0/scale": array}.
Anything left over on either side is an error that names it.
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


def _conv1x1x1(x: np.ndarray) -> np.ndarray:
    if x.shape[2:] != (1, 1, 1):
        raise ValueError("the kernel is not 1 by 1 by 1")
    return x[:, :, 0, 0, 0].T


# name -> (source layout -> ours, ours -> source layout)
TRANSFORMS: dict[str, tuple[Callable[..., np.ndarray], Callable[..., np.ndarray]]] = {
    "keep": (lambda x: x, lambda x: x),
    "linear": (_linear, _linear),  # [out, in] <-> [in, out]
    "conv": (  # [out, in, kh, kw] <-> [kh, kw, in, out]
        lambda x: np.transpose(x, (2, 3, 1, 0)),
        lambda x: np.transpose(x, (3, 2, 0, 1)),
    ),
    "up": (  # transposed, stride = kernel: [in, out, kh, kw] <-> [in, kh, kw, out]
        lambda x: np.transpose(x, (0, 2, 3, 1)),
        lambda x: np.transpose(x, (0, 3, 1, 2)),
    ),
    "map": (  # [1, C, h, w] <-> [h, w, C]
        lambda x: np.transpose(x, (0, 2, 3, 1)).squeeze(0),
        lambda x: np.transpose(x, (2, 0, 1))[None],
    ),
    "conv1x1": (  # [out, in, 1, 1] <-> [in, out]
        _conv1x1,
        lambda x: x.T[:, :, None, None],
    ),
    "conv1x1x1": (  # [out, in, 1, 1, 1] <-> [in, out]
        _conv1x1x1,
        lambda x: x.T[:, :, None, None, None],
    ),
}


@dataclasses.dataclass(frozen=True)
class Rule:
    r"""One row of a table.

    Attributes:
      pattern: regular expression for the whole source name.
      target: path in the tree, with `\1` for a group of the pattern; None = ignored on purpose.
      transform: key of TRANSFORMS.
      index: position along the leading axis, for layers that the model stacks and scans; None = not
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
    """Maps a state dict to a flat tree.

    Args:
      source: name -> array, in the foreign layout.
      rules: the table; the first rule that matches a name applies.
      shapes: path -> shape of every leaf of the tree.
      fresh: regular expressions for the paths that may stay unfilled, because they keep their
        initial values.
      dtype: the only one accepted; None accepts and keeps any.

    Returns:
      path -> array, without the fresh leaves.

    Raises:
      ConversionError: listing every unmatched source name, unfilled path, wrong shape or dtype, and
        path that is filled twice.
    """
    compiled, builder = _compile(rules), _TreeBuilder(shapes, dtype)
    for name, array in source.items():
        found = _first_match(compiled, name)
        if found is None:
            builder.problems.append(f"source tensor {name} {np.shape(array)} matches no rule")
        elif found[1] is not None:
            builder.put(name, np.asarray(array), *found)
    tree = builder.finish(fresh, _NameHints(rules))
    _raise_if_any(builder.problems)
    return tree


def invert_rules(
    tree: Mapping[str, np.ndarray], rules: Sequence[Rule], names: Sequence[str]
) -> dict[str, np.ndarray]:
    """The inverse: the arrays called `names` in the foreign layout, except ignored ones.

    Raises:
      ConversionError: listing the names that match no rule and the paths that the tree lacks.
    """
    compiled, problems, result = _compile(rules), [], {}
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
    _raise_if_any(problems)
    return result


class _TreeBuilder:
    """Builds a flat tree and collects all problems, as sentences."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype | type | None):
        self._shapes, self._dtype = shapes, dtype
        # path -> {index in the stack, or None: array}. An array that does not fit is None, so that
        # it is not reported as missing too.
        self._found: dict[str, dict[int | None, np.ndarray | None]] = {}
        self.problems: list[str] = []

    def put(self, name: str, array: np.ndarray, rule: Rule, target: str) -> None:
        """Puts one tensor of the source where its rule says."""
        parts = self._found.setdefault(target, {})
        if rule.index in parts:
            self.problems.append(f"{name} -> {target}: filled twice")
        try:
            parts[rule.index] = self._fit(array, rule, target)
        except _RuleError as error:
            parts[rule.index] = None
            self.problems.append(f"{name} -> {target}: {error}")

    def finish(self, fresh: Sequence[str], hints: "_NameHints") -> dict[str, np.ndarray]:
        """The tree, which is complete if there are no problems; adds those of missing tensors."""
        tree = {}
        for path, shape in self._shapes.items():
            parts = self._found.get(path)
            if parts is None:
                if not any(re.fullmatch(pattern, path) for pattern in fresh):
                    would = hints(path)
                    self.problems.append(
                        f"{path} {tuple(shape)}: nothing in the source fills it"
                        + (f"; {would} would" if would else "")
                    )
            elif None in parts:
                tree[path] = parts[None]
            else:
                tree[path] = self._stack(path, parts, hints)
        return tree

    def _fit(self, array: np.ndarray, rule: Rule, target: str) -> np.ndarray:
        if target not in self._shapes:
            raise _RuleError("the model has no such parameter")
        shape = tuple(self._shapes[target])
        if rule.index is not None:
            count, *shape = shape
            if rule.index >= count:
                raise _RuleError(f"layer {rule.index} of {count}")
        try:
            value = TRANSFORMS[rule.transform][0](array)
        except (ValueError, IndexError) as error:
            raise _RuleError(
                f"shape {array.shape}, not a {rule.transform} tensor ({error})"
            ) from None
        if value.shape != tuple(shape):
            expected = _source_shape(rule, tuple(shape))
            raise _RuleError(f"shape {array.shape}, expected {expected}")
        if self._dtype is not None and value.dtype != self._dtype:
            raise _RuleError(f"{value.dtype}, expected {np.dtype(self._dtype)}")
        return value

    def _stack(self, path: str, parts: Mapping[int, np.ndarray | None], hints: "_NameHints"):
        count = self._shapes[path][0]
        missing = sorted(set(range(count)) - parts.keys())
        if missing:
            would = ", ".join(filter(None, (hints(path, index) for index in missing)))
            self.problems.append(
                f"{path}: layers {missing} of {count} are not in the source"
                + (f": {would}" if would else "")
            )
        whole = [parts.get(i) for i in range(count)]
        return None if any(part is None for part in whole) else np.stack(whole)


class _RuleError(Exception):
    """A tensor does not fit where its rule puts it."""


def _raise_if_any(problems: Sequence[str]) -> None:
    if problems:
        raise ConversionError(f"{len(problems)} problem(s):\n  " + "\n  ".join(problems))


def _source_shape(rule: Rule, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape, in the source layout, of a leaf or of one entry of a stack."""
    try:
        return TRANSFORMS[rule.transform][1](np.broadcast_to(np.float32(0), shape)).shape
    except (ValueError, IndexError):  # the transform never makes such a leaf
        return shape


class _NameHints:
    """Finds the source names that would fill a path, by reading the table backward.

    A pattern is literal text, alternatives and groups; the path tells the groups that its target
    repeats.
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
        """The names, one per layout, joined by "or"; "" if the pattern does not tell.

        Args:
          path: that nothing fills.
          index: entry of the stack, if the path is one; None: the first.
        """
        found = []
        for target, rule in self._targets:
            match = target.fullmatch(path)
            if not match or rule.index not in ((None, 0) if index is None else (index,)):
                continue
            numbers, known = itertools.count(1), match.groupdict()

            def fill(group, numbers=numbers, known=known):
                return known.get(f"g{next(numbers)}", group[0])

            compiled = _compile([rule])
            for literal in _alternatives(re.sub(r"\((?!\?)[^()]*\)", fill, rule.pattern)):
                name = re.sub(r"\\(.)", r"\1", literal)
                if _first_match(compiled, name) == (rule, path) and name not in found:
                    found.append(name)
        return " or ".join(found)


def _alternatives(pattern: str) -> list[str]:
    """Expands the groups (?:a|b) and (?:a)? of a pattern."""
    group = re.search(r"\(\?:([^()]*)\)(\??)", pattern)
    if group is None:
        return [pattern]
    choices = group[1].split("|") + [""] * bool(group[2])
    before, after = pattern[: group.start()], pattern[group.end() :]
    return [text for choice in choices for text in _alternatives(before + choice + after)]


def _compile(rules: Sequence[Rule]) -> list[tuple[re.Pattern, Rule]]:
    return [(re.compile(rule.pattern), rule) for rule in rules]


def _first_match(compiled, name):
    for pattern, rule in compiled:
        match = pattern.fullmatch(name)
        if match:
            return rule, None if rule.target is None else match.expand(rule.target)
    return None
