"""The programs that check_kills.py kills, and how to tell whether what they leave is whole."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping

from array_record.python.array_record_data_source import ArrayRecordDataSource

from avs_jax.data.records import read_folder
from scripts.check_resume import compare, newest_step

ROOT = pathlib.Path(__file__).resolve().parent.parent
RECORDS = "array_record"
STEPS, SAVE_EVERY = 9, 3
TRAINING = (
    "--config=configs/s4_ama.py:tiny",
    f"--config.train.steps={STEPS}",
    "--config.train.batch_size=4",
    f"--config.train.eval_every={STEPS}",
    f"--config.train.checkpoint_every={SAVE_EVERY}",
    "--config.train.keep_latest=10",
    "--config.train.final_splits=('val',)",
    "--config.train.num_pictures=0",
    "--config.evaluate.batch_size=4",
    "--config.evaluate.num_pictures=0",
    "--config.evaluate.swapped_audio=False",
)

Files = dict[str, str]  # path below a folder -> digest of the content


class Failed(Exception):
    """Something is not as it was without a kill."""


@dataclasses.dataclass
class Job:
    """One program.

    Attributes:
      folder: that it writes to.
      arguments: of Python.
      prepare: puts the folder in the state before a round.
      check: raises Failed unless what has its final name is whole; called after each kill.
      compare: raises Failed unless the folder holds what an uninterrupted run leaves.
      keep: remembers that, from the folder.
    """

    name: str
    folder: pathlib.Path
    arguments: list[str]
    prepare: Callable[[], None]
    check: Callable[[], None]
    compare: Callable[[], None]
    keep: Callable[[], None]


# ---- the programs ----


def make_jobs(output: pathlib.Path, kinds: Collection[str]) -> dict[str, Job]:
    """Makes clips, and the records and the trained model that these kinds use; returns all jobs."""
    clips, data, model = output / "clips", output / "tfds", output / "model"
    flags = ["--train=9", "--val=3", "--test=3", "--size=64"]
    run_tool(output, ["scripts/make_clips.py", f"--output={clips}", *flags])
    build = ["--dataset=avsbench_s4", f"--manual_dir={clips}"]
    train = ["-m", "avs_jax.main", *TRAINING, f"--config.data.data_dir={data}"]
    checkpoint = f"--checkpoint={model / 'checkpoints' / str(STEPS)}"
    first, second = sorted(clips.rglob("*.mp4"))[:2]
    needs_model = {"predict", "evaluate"} & set(kinds)
    if needs_model or "training" in kinds:
        run_tool(output, ["scripts/build_dataset.py", *build, f"--data_dir={data}"])
    if needs_model:
        run_tool(output, [*train, f"--workdir={model}"])

    evaluate = ["-m", "avs_jax.evaluate", checkpoint, "--split=val"]
    predict = ["-m", "avs_jax.predict", checkpoint, f"--video={first}"]
    other = output / "other_video"
    if "predict" in kinds:
        run_tool(output, [*predict[:3], f"--video={second}", f"--output={other}"])
    estimate = ["-m", "avs_jax.flow", "--dataset=s4", f"--root={clips}", "--model=difference"]

    def folder(name: str) -> pathlib.Path:
        return output / name

    return {
        "training": training_job(folder("training"), train),
        "build": whole_job(
            folder("build"),
            ["scripts/build_dataset.py", *build, f"--data_dir={folder('build')}"],
            final="avsbench_s4/object224/1.0.0",
            is_final=lambda path: (path / "dataset_info.json").is_file(),
        ),
        "flow": file_job(folder("flow"), [*estimate, f"--output={folder('flow')}"], "flow_*.npy"),
        "predict": whole_job(
            folder("predict"), [*predict, f"--output={folder('predict') / 'masks'}"],
            final="masks", earlier=other,
        ),
        "evaluate": whole_job(
            folder("evaluate"), [*evaluate, f"--output={folder('evaluate')}"], final="evaluation/*"
        ),
    }  # fmt: skip


def whole_job(
    folder: pathlib.Path,
    arguments: list[str],
    final: str,
    earlier: pathlib.Path | None = None,
    is_final: Callable[[pathlib.Path], bool] = pathlib.Path.is_dir,
) -> Job:
    """A program whose result is one folder that appears, or replaces another, as a whole.

    Args:
      final: pattern of that folder.
      earlier: content that it has before.
      is_final: whether a folder of that name is meant to be complete.
    """
    before: Files = {}
    expected: dict[str, Files] = {}

    def prepare() -> None:
        empty(folder)
        if earlier:
            before.update(digests(earlier))
            shutil.copytree(earlier, folder / final)

    def check() -> None:
        for path in folder.glob(final):
            is_named = not any(part in path.name for part in (".unfinished", ".replaced", ".lock"))
            if path.is_dir() and is_named and is_final(path):
                name = str(path.relative_to(folder))
                found, after = digests(path), under(expected["whole"], name)
                if differing(found, after) and (not before or differing(found, before)):
                    raise Failed(f"{path} is neither: {differing(found, after)[:5]}")

    def keep() -> None:
        expected["whole"] = digests(folder)

    return Job(folder.name, folder, arguments, prepare, check, lambda: same(folder, expected), keep)


def file_job(folder: pathlib.Path, arguments: list[str], pattern: str) -> Job:
    """A program that writes single files, each of which appears as a whole."""
    expected: dict[str, Files] = {}

    def check() -> None:
        for name, digest in digests(folder).items():
            is_named = pathlib.PurePath(name).match(pattern) and ".unfinished" not in name
            if is_named and expected["whole"].get(name) != digest:
                raise Failed(f"{folder / name} is not whole")

    def keep() -> None:
        expected["whole"] = digests(folder)

    return Job(
        folder.name, folder, arguments, lambda: empty(folder), check,
        lambda: same(folder, expected), keep,
    )  # fmt: skip


def training_job(folder: pathlib.Path, arguments: list[str]) -> Job:
    """Training: its checkpoints are compared array by array, because their files differ."""
    whole = folder.with_name(f"{folder.name}_whole")

    def check() -> None:
        step = newest_step(folder)
        if step is not None and (found := compare(whole, folder, step)):
            raise Failed(f"{folder}, step {step}: {found[:5]}")

    def keep() -> None:
        folder.rename(whole)

    def compare_all() -> None:
        for step in range(SAVE_EVERY, STEPS + 1, SAVE_EVERY):
            if found := compare(whole, folder, step):
                raise Failed(f"{folder}, step {step}: {found[:5]}")
        if losses(folder) != losses(whole):
            raise Failed(f"{folder}: metrics.jsonl has other steps or losses")
        same(folder / "evaluation", {"whole": digests(whole / "evaluation")})
        entries = [{p.name for p in run.rglob("*") if "events." not in p.name}
                   for run in (folder, whole)]  # fmt: skip
        strange = sorted(name for name in entries[0] - entries[1] if not is_array_data(name))
        if strange:
            raise Failed(f"{folder}: {strange[:5]} are left")

    return Job(
        folder.name, folder, [*arguments, f"--workdir={folder}"], lambda: empty(folder), check,
        compare_all, keep,
    )  # fmt: skip


def is_array_data(name: str) -> bool:
    """Whether Orbax named a file after its content."""
    return len(name) == 32 and set(name) <= set("0123456789abcdef")


def losses(workdir: pathlib.Path) -> list[dict[str, float]]:
    """Losses and scores of every step in metrics.jsonl.

    Left out: what depends on the clock, and the compiled step's bytes, which each start reports.
    """
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    kept = [
        {name: x for name, x in line.items() if name == "step" or _is_result(name)}
        for line in lines
    ]
    return [line for line in kept if len(line) > 1]


def _is_result(name: str) -> bool:
    return "loss" in name or ("/" in name and not name.startswith("step_bytes/"))


def same(folder: pathlib.Path, expected: Mapping[str, Files]) -> None:
    """Raises Failed unless a folder holds the expected files, and no others."""
    if names := differing(digests(folder), expected["whole"]):
        raise Failed(f"{folder} differs from an uninterrupted run in {names[:5]}")


def under(files: Files, name: str) -> Files:
    """The files of a subfolder."""
    prefix = f"{name}/"
    return {k.removeprefix(prefix): v for k, v in files.items() if k.startswith(prefix)}


# ---- processes ----


def run_tool(output: pathlib.Path, arguments: list[str]) -> None:
    """Runs a program once; its output goes to OUTPUT/prepare.log."""
    with (output / "prepare.log").open("ab") as log:
        status = subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, env=environment(output), stdout=log, stderr=log
        ).returncode
    if status:
        raise Failed(f"{arguments[:2]}: exit status {status}; see {output / 'prepare.log'}")


def environment(output: pathlib.Path) -> dict[str, str]:
    """One CPU device, few optimizations, and one cache for what all of them compile."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    return kept | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(output / "compilation_cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }


# ---- files ----


def look(folder: pathlib.Path) -> set[tuple[str, int, int]]:
    """Path, size and time of every file and folder."""
    found, waiting = set(), [str(folder)]
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                found.add((entry.path, status.st_size, status.st_mtime_ns))
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
    return found


def digests(folder: pathlib.Path) -> Files:
    """Of every file below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): digest(path) for path in files}


def digest(path: pathlib.Path) -> str:
    """Of a file's bytes; of the records, if that is what it holds, whose fields have no order."""
    if f".{RECORDS}-" not in path.name:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    fields = read_folder(path.parent).features.deserialize_example_np
    found = hashlib.sha256()
    for data in ArrayRecordDataSource([str(path)]):
        record = fields(data)
        for name in sorted(record):
            found.update(pickle.dumps((name, record[name])))
    return found.hexdigest()


def differing(found: Files, expected: Files) -> list[str]:
    """Files that are missing, superfluous or of another content."""
    names = sorted(found.keys() | expected.keys())
    return [name for name in names if found.get(name) != expected.get(name)]


def empty(folder: pathlib.Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
