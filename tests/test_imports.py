"""Imports point down only: programs -> runtime, results, data, models, losses -> ops -> spec."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "avs_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

# Lower numbers may be imported by higher ones; equal numbers only within the same folder.
LAYERS = {"spec": 0, "files": 0, "label_images": 1, "ops": 1, "convert": 2, "data": 2, "models": 2, "losses": 2, "results": 2}
LAYERS |= {"runtime": 3, "evaluate": 4, "predict": 4, "flow": 4, "train": 5, "plan": 5, "main": 6}
NUMPY_ONLY = {"data", "convert"}


def part(path: pathlib.Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def imported_modules(path: pathlib.Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    here = part(path)
    if here == "__init__":
        assert not imported_modules(path)
        return
    for name in imported_modules(path):
        pieces = name.split(".")
        if pieces[0] in ("scripts", "tfds_builders", "configs", "tests"):
            pytest.fail(f"{path.name} imports {name}: the package never imports its surroundings")
        if pieces[0] in ("jax", "jaxlib", "flax", "optax", "orbax") and here in NUMPY_ONLY:
            pytest.fail(f"{path.name} imports {name}: {here}/ is numpy only")
        if name.startswith("flax.linen") and here != "models":
            pytest.fail(f"{path.name} imports {name}: flax.linen lives under models/")
        if pieces[0] == "avs_jax" and len(pieces) > 1:
            there = pieces[1]
            assert there in LAYERS, f"{path.name} imports {name}, which has no layer"
            if there != here:
                assert LAYERS[there] < LAYERS[here], f"{path.name} ({here}) imports {name} upwards"
