"""Imports point down only, runtime is free of every task, and no program asks which task it is.

cli -> main, programs -> train -> evaluate | predict | flow | plan -> tasks -> inference -> controls
-> data, models, losses, results, convert; runtime -> ops, task; all -> spec, files.
"""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "avs_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

# Lower numbers may be imported by higher ones; equal numbers only within the same folder.
LAYERS = {
    **dict.fromkeys(("spec", "files", "flag_style", "progress", "stopping", "xla_flags"), 0),
    **dict.fromkeys(("task", "ops", "label_images", "array_files", "output_folder"), 1),
    **dict.fromkeys(("convert", "data", "models", "losses", "results", "runtime"), 2),
    **dict.fromkeys(("controls", "generate"), 3),
    "inference": 4,
    "tasks": 5,
    **dict.fromkeys(("report_identity", "finished_conditions"), 5),
    **dict.fromkeys(("evaluate", "predict", "flow", "plan"), 6),
    "train": 7,
    "main": 8,
    "app": 7,
    "programs": 8,
    "cli": 9,
}
NUMPY_ONLY = {"data", "convert", "controls", "generate", "results", "label_images", "files"} | {
    "array_files"
}
ON_DEVICE = {"results/postprocess.py", "results/pixel_scores.py"}  # scores, within the eval step


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
        assert imported_modules(path) == {"avs_jax.xla_flags"}
        return
    is_numpy_only = here in NUMPY_ONLY and str(path.relative_to(PACKAGE)) not in ON_DEVICE
    for name in imported_modules(path):
        pieces = name.split(".")
        around = {"scripts", "tfds_builders", "configs", "tests"}
        if pieces[0] in around - ({"tfds_builders"} if here == "programs" else set()):
            pytest.fail(f"{path.name} imports {name}: the package never imports its surroundings")
        if pieces[0] in ("jax", "jaxlib", "flax", "optax", "orbax") and is_numpy_only:
            pytest.fail(f"{path.name} imports {name}: {here}/ is numpy only")
        if name.startswith("flax.linen") and here != "models":
            pytest.fail(f"{path.name} imports {name}: flax.linen lives under models/")
        if pieces[0] == "avs_jax" and len(pieces) > 1:
            there = pieces[1]
            assert there in LAYERS, f"{path.name} imports {name}, which has no layer"
            if there != here:
                assert LAYERS[there] < LAYERS[here], f"{path.name} ({here}) imports {name} upwards"


ASKING = [path for path in FILES if path.relative_to(PACKAGE) != pathlib.Path("tasks/__init__.py")]


def reads_task_name(node: ast.AST) -> bool:
    """Whether an expression is `config.task` or `task.name`, in any spelling."""
    match node:
        case ast.Attribute(value, attr="task"):
            return ast.unparse(value).endswith("config")
        case ast.Attribute(value, attr="name"):
            return ast.unparse(value).endswith("task")
        case ast.Call(func=ast.Attribute(attr="get"), args=[ast.Constant(value="task"), *_]):
            return True
        case ast.Subscript(value, slice=ast.Constant(value="task")):
            return ast.unparse(value) != "facts"  # of a report: "binary" or "semantic"
    return False


def comparisons_of_tasks(source: str) -> list[str]:
    compared = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Compare)]
    return [ast.unparse(x) for x in compared if any(map(reads_task_name, ast.walk(x)))]


@pytest.mark.parametrize("path", ASKING, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_asks_which_task_it_is(path):
    assert not comparisons_of_tasks(path.read_text())


@pytest.mark.parametrize(
    "asking",
    [
        "if config.task == 'refer': pass",
        "kind = self.task.name in ('refer',)",
        "whole = checkpoint.config.get('task') == WHOLE[part]",
        "x = stored['task'] != 'track'",
        "if (config.task, config.get('host')) != (family.task, family.host): pass",
    ],
)
def test_every_spelling_of_that_question_is_found(asking):
    assert comparisons_of_tasks(asking)
