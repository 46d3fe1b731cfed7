"""Rules that carry tensors between a foreign state dict and a parameter tree, both ways.

A rule is one row: which source name, which place in the tree, and how the layout changes. Tables
of rules are in `tables.py`, as functions of the model's configuration. Trees are flat here:
{"backbone/norm0/scale": array}. Nothing is left over on either side without being named.
"""

import dataclasses
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
    only_floats: bool = False,
) -> dict[str, np.ndarray]:
    """Carries a state dict into a flat tree.

    Args:
      source: name -> array, in the foreign layout.
      rules: the table; the first rule whose pattern matches a name counts.
      shapes: path -> shape of every leaf the tree must have.
      fresh: regular expressions of target paths that may stay unfilled (they keep their initial
        value).
      only_floats: refuse whole numbers and booleans, which parameters are not.

    Returns:
      path -> array, dtypes kept; fresh leaves are absent.

    Raises:
      ConversionError: listing every unmatched source name, unfilled path, wrong shape, double
        assignment and, where `only_floats`, wrong dtype.
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
            problems.append(f"{name} -> {target}: shape {value.shape}, the model wants {want}")
            continue
        if only_floats and value.dtype.kind != "f":
            problems.append(f"{name} -> {target}: {value.dtype}, parameters are floating-point")
        slot = plain if rule.index is None else stacked.setdefault(target, {})
        key = target if rule.index is None else rule.index
        if rule.index is not None and rule.index >= shapes[target][0]:
            problems.append(f"{name} -> {target}: layer {rule.index} of {shapes[target][0]}")
        if key in slot:
            problems.append(f"{name} -> {target}: filled twice")
        slot[key] = value
    for target, parts in stacked.items():
        count = shapes[target][0]
        missing = sorted(set(range(count)) - layers[target])
        if missing:
            problems.append(f"{target}: layers {missing} of {count} are not in the source")
        elif len(parts) == count:
            plain[target] = np.stack([parts[i] for i in range(count)])
    for path, shape in shapes.items():
        if path not in attempted and not any(re.fullmatch(pattern, path) for pattern in fresh):
            problems.append(f"{path} {tuple(shape)}: nothing in the source fills it")
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


def _first_match(compiled, name):
    for pattern, rule in compiled:
        match = pattern.fullmatch(name)
        if match:
            return rule, None if rule.target is None else match.expand(rule.target)
    return None
