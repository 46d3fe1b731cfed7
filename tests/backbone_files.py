"""Weight files of backbones: their names and shapes in every layout, for full and small models."""

import functools
import json
import re

import numpy as np
from flax import traverse_util

from avs_jax.convert.rules import apply_rules
from tests.conftest import GOLDEN
from tests.golden.weights import avs_value

Entries = dict[str, tuple[tuple[int, ...], str]]  # name -> (shape, dtype)


@functools.cache
def entries(file: str) -> Entries:
    """What a published file holds, from golden/names_{file}.json."""
    table = json.loads((GOLDEN / f"names_{file}.json").read_text())["entries"]
    return {n.removeprefix("model/"): (tuple(shape), dtype) for n, shape, dtype in table}


@functools.cache
def b2_entries() -> Entries:
    """AVSBench's two-branch ResNet, whose file has torchvision's shapes."""
    text = (GOLDEN / "names_b2_resnet_map.json").read_text()
    theirs = entries("torchvision_resnet50")
    names = json.loads(text)["b2_resnet_to_torchvision"]
    return {ours: theirs[name] for ours, name in names.items()}


def golden_state(found: Entries, prefix: str = "") -> dict[str, np.ndarray]:
    """A state dict of the goldens' weights; `prefix` is part of the names of the rule."""
    return {
        name: np.zeros(shape, dtype) if value is None else value
        for name, (shape, dtype) in found.items()
        for value in [avs_value(prefix + name, shape, dtype == "int64")]
    }


def fill(tree, state, rules):
    """Variables {"params", "batch_stats"} shaped as `tree`, which holds both, from a state dict."""
    flat = traverse_util.flatten_dict(tree["params"], sep="/")
    stats = traverse_util.flatten_dict(tree.get("batch_stats", {}), sep="/")
    shapes = {path: x.shape for path, x in flat.items()}
    shapes |= {f"batch_stats/{path}": x.shape for path, x in stats.items()}
    filled = traverse_util.unflatten_dict(apply_rules(state, rules, shapes), sep="/")
    return {"batch_stats": filled.pop("batch_stats", {}), "params": filled}


def assert_probe(found, name: str, golden, tolerance: float = 1e-5) -> None:
    """`found` [N, h, w, C] at the stored places, relative to the largest value."""
    found = np.moveaxis(np.asarray(found), -1, 1)
    shape = tuple(golden[f"{name}/shape"])
    assert found.shape[1:] == shape[1:], name
    places = golden[f"{name}/probe_idx"]
    there = places < found.size  # the first frames, where not all were computed
    assert there.sum() > 20
    expected = golden[f"{name}/probe_val"]
    np.testing.assert_allclose(
        found.reshape(-1)[places[there]],
        expected[there],
        rtol=0,
        atol=tolerance * float(np.abs(expected).max()),
        err_msg=name,
    )


def without_blocks(found: Entries, pattern: str, depths) -> Entries:
    """The names of a model of fewer blocks; the pattern's groups are stage and block."""
    kept = {}
    for name, entry in found.items():
        block = re.match(pattern, name)
        if block is None or int(block[2]) < depths[int(block[1])]:
            kept[name] = entry
    return kept
