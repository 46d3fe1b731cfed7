"""Checkpoints, configurations and folders of predictions under random damage."""

import contextlib
import functools
import json
import pathlib
import shutil
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from PIL import Image

from avs_jax.results.segmentation import read_predictions
from avs_jax.runtime.checkpoint import Checkpoint, save_variables
from avs_jax.runtime.command_line import CommandLine, checkpoint_config, override
from avs_jax.runtime.run_checkpoints import Checkpoints
from avs_jax.runtime.run_config import check_run_config
from avs_jax.runtime.step import TrainState
from avs_jax.runtime.stored_config import flat_config, plain_config
from avs_jax.spec import InputError
from avs_jax.tasks import make_task
from avs_jax.tasks.segment import prediction_layout
from configs import s4_ama
from tests.fuzz.runner import run_mutations
from tests.results import test_predictions as masks

pytestmark = pytest.mark.slow
JSON = [b"{", b"}", b"[", b"]", b",", b":", b"null", b"true", b'"x"', b"[1, 2]", b'{"a": 1}', b"-3",
        b"0", b'""', b"1e400", b'"name": '] + [b"[" * 2000]  # fmt: skip
VALUES = [b"=", b"\n", b"None", b"True", b"-1", b"0", b"nan", b"inf", b"1e30", b"(1, 2)", b"'x'",
          b"()", b"none", b"swin", b"64", b"1.5"]  # fmt: skip
PNG = [b"IHDR", b"IDAT", b"IEND", b"PLTE", b"tRNS"]
_keep: list[tempfile.TemporaryDirectory] = []


def scratch() -> pathlib.Path:
    """A folder that lives as long as the process."""
    _keep.append(tempfile.TemporaryDirectory(prefix="fuzz"))
    return pathlib.Path(_keep[-1].name)


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# ---- checkpoints ----


def state(step: int) -> TrainState:
    rng = np.random.default_rng(step)
    params = {"fc": {"kernel": jnp.asarray(rng.normal(size=(4, 6)), jnp.float32)}}
    return TrainState(
        step=jnp.asarray(step, jnp.int32), params=params, batch_stats={}, opt_state={"m": params}
    )


def run_folder() -> dict[str, bytes]:
    """A working directory with two checkpoints."""
    root = scratch()
    checkpoints = Checkpoints(root, tiny())
    for step in (1, 2):
        checkpoints.save(state(step), step, {"mIoU": step / 10})
    checkpoints.close()
    return contents(root)


def weights_folder(with_checksums: bool = True) -> dict[str, bytes]:
    """Converted weights; checkpoints of earlier versions have no checksums."""
    root = scratch() / "weights"
    params = jax.tree.map(np.asarray, state(1).params)
    kept = {"other": np.arange(3.0)}
    save_variables(root, {"params": params, "batch_stats": {}}, tiny(), kept)
    if not with_checksums:
        shutil.rmtree(root / "checksums")
    return contents(root)


def stored_config() -> bytes:
    return json.dumps(plain_config(tiny())).encode()


def read_run(path: pathlib.Path) -> None:
    """What a start of training reads, bit for bit what was saved; and what an evaluation reads."""
    with contextlib.closing(Checkpoints(path, tiny())) as checkpoints:
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0)
        )
        restored, step = checkpoints.restore(target)
        jax.tree.map(np.testing.assert_array_equal, restored, state(step))
    read_weights(path)


def read_weights(path: pathlib.Path) -> None:
    checkpoint = Checkpoint.find(path)
    _ = checkpoint.config, checkpoint.name, checkpoint.measure
    for weights in checkpoint.choose_weights():
        checkpoint.variables(weights)
    checkpoint.kept()


def read_stored(path: pathlib.Path) -> None:
    """The configuration of a checkpoint without checksums, up to the task it describes."""
    folder = path.with_name("weights")
    if not folder.is_dir():
        for name, data in weights_folder(with_checksums=False).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
    shutil.copyfile(path, folder / "config" / "metadata")
    line = CommandLine(None, flags.FlagValues(), ())
    config, _ = checkpoint_config(line, Checkpoint(folder))
    make_task(config)


# ---- configurations ----


@functools.cache
def tiny():
    return s4_ama.get_config("tiny")


def overrides() -> bytes:
    """Every key of the recipe with its value, a line each."""
    lines = [f"{key}={value}" for key, value in flat_config(tiny()).items() if value != {}]
    return "\n".join(lines).encode()


def read_overrides(path: pathlib.Path) -> None:
    """The lines that differ from the recipe, as flags; then what training checks of them."""
    good = set(overrides().decode().split("\n"))
    lines = path.read_bytes().decode(errors="surrogateescape").split("\n")
    given = [f"--config.{line}" for line in lines if line not in good and "=" in line]
    config = override(s4_ama.get_config("tiny"), given)
    _in_one_line(check_run_config, config)
    make_task(config)


def _in_one_line(read, *args) -> None:
    """A list of problems, one per line, counts as one."""
    try:
        read(*args)
    except InputError as error:
        first, *rest = str(error).split("\n")
        assert rest and all(line.startswith("  ") for line in rest), error
        raise InputError(first) from error


# ---- predictions ----


def predictions(num_classes: int) -> dict[str, bytes]:
    """A folder in which two clips of the binary task have npy, the others png."""
    folder = scratch() / "predictions"
    config, source = masks.a_config(num_classes), masks.records(num_classes)
    masks.write_all(config, source, masks.random_predictions(config), folder)
    if num_classes == 2:
        for path in sorted(folder.rglob("*.npy"))[::2]:
            pixels = (np.load(path) * 255).astype(np.uint8)
            Image.fromarray(pixels).save(path.with_suffix(".png"))
            path.unlink()
    return contents(folder)


def read_masks(path: pathlib.Path) -> None:
    _read_predictions(path, 2)


def read_classes(path: pathlib.Path) -> None:
    _read_predictions(path, 71)


def _read_predictions(path: pathlib.Path, num_classes: int) -> None:
    rows, layout = _rows_and_layout(num_classes)
    source = masks.records(num_classes)
    _in_one_line(
        functools.partial(
            read_predictions, path, source, {"split": "test"}, rows=rows, layout=lambda: layout
        )
    )


@functools.cache
def _rows_and_layout(num_classes: int):
    config = masks.a_config(num_classes)
    return masks.ClipRows(config), prediction_layout(config)


# kind -> good input, reader, tokens, number of mutations
KINDS = {
    "run": (run_folder, "read_run", JSON, 250),
    "weights": (weights_folder, "read_weights", JSON, 200),
    "weights_without_checksums": (
        functools.partial(weights_folder, False), "read_weights", JSON, 200,
    ),
    "stored_config": (stored_config, "read_stored", JSON, 400),
    "overrides": (overrides, "read_overrides", VALUES, 700),
    "masks": (functools.partial(predictions, 2), "read_masks", PNG, 300),
    "classes": (functools.partial(predictions, 71), "read_classes", PNG, 200),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_runs(kind):
    good, reader, tokens, count = KINDS[kind]
    reader = f"tests.fuzz.test_runs.{reader}"
    counts = run_mutations(
        kind, good(), reader, count, seed=14, tokens=tokens, memory=4 << 30, seconds=30
    )
    print(json.dumps(counts))
    # The mutations do damage; a run resumes from the checkpoint that has none.
    assert kind == "run" or counts["refused"] > count // 5
