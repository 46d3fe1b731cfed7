"""Writes whole generated datasets. `SETTINGS` is the table of what can be generated.

A dataset is a folder: the files of its clips, the tables of its setting, and generated_clips.json,
which holds the options that everything follows from. An interrupted run is resumed by calling
`write_clips` again with the same options: clips whose files all exist are skipped.
"""

import json
import multiprocessing.pool
import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avs_jax.data.avsbench_folders import MANIFEST, SPLITS
from avs_jax.files import write_atomically
from avs_jax.generate import avsbench, moments, refer, twins
from avs_jax.generate.setting import Options, Setting
from avs_jax.progress import Progress
from avs_jax.spec import InputError

_UNFINISHED_MANIFEST = "generated_clips.unfinished.json"  # what a kill may leave of it
SETTINGS: Mapping[str, Setting] = {
    "s4": avsbench.S4,
    "ms3": avsbench.MS3,
    "avss": avsbench.AVSS,
    "twins": twins.TWINS,
    "moments": moments.MOMENTS,
    "refer": refer.REFER,
}


def write_clips(
    root: str | os.PathLike,
    num_train: int | None = None,
    num_val: int | None = None,
    num_test: int | None = None,
    seed: int = 0,
    size: int | None = None,
    num_categories: int | None = None,
    workers: int = 2,
    setting: str = "s4",
    kind: str | None = None,
) -> int:
    """Writes a dataset and returns how many clips were rendered; clips that exist are kept.

    Args:
      root: folder of the dataset: new, or from a call with the same options.
      num_train: clips per split, with num_val and num_test. None: the setting's default, as for
        size, num_categories and kind.
      size: height of the frames in pixels, even (h264 requires it).
      workers: processes; 0 or 1 renders in this one.
      setting: key of SETTINGS.
    """
    root = Path(root).expanduser()
    if setting not in SETTINGS:
        raise InputError(f"setting={setting!r}, expected one of {', '.join(SETTINGS)}")
    row = SETTINGS[setting]
    options = _check_options(setting, row, seed, size, num_categories, kind)
    counts = row.default_counts()
    asked = dict(zip(SPLITS, (num_train, num_val, num_test), strict=True))
    counts |= {split: count for split, count in asked.items() if count is not None}
    if min(counts.values()) < 0:
        raise InputError(f"clips per split {counts}, expected none below 0")
    row.plan(options, SPLITS[0], 0)  # raises if there are not so many categories
    _claim(root, _manifest(setting, row, options, counts))
    plans, jobs = [], []
    for split, count in row.splits(counts).items():
        for index in range(count):
            plan = row.plan(options, split, index)
            plans.append(plan)
            if not all(path.exists() for path in row.paths(root, plan)):
                jobs.append((root, setting, options, split, index))
    _render_all(jobs, workers)
    for name, text in row.tables(plans, options).items():
        write_atomically(root / name, text)
    return len(jobs)


def _check_options(
    name: str,
    row: Setting,
    seed: int,
    size: int | None,
    num_categories: int | None,
    kind: str | None,
) -> Options:
    """Fills in the setting's defaults; InputError for a value that cannot be used."""
    if seed < 0:
        raise InputError(f"seed={seed}, expected 0 or more")
    size = row.size if size is None else size
    if size % 2 or size < 32:
        raise InputError(f"size={size}, expected an even number of pixels, at least 32")
    if num_categories is not None and row.num_categories is None:
        raise InputError(f"categories={num_categories}: setting {name} has a fixed set of its own")
    if kind is not None and kind not in row.kinds:
        choices = f"expected one of {', '.join(row.kinds)}" if row.kinds else "it has no kinds"
        raise InputError(f"kind={kind!r} of setting {name}: {choices}")
    return Options(
        seed=seed,
        size=size,
        kind=kind or (row.kinds[0] if row.kinds else ""),
        num_categories=row.num_categories if num_categories is None else num_categories,
    )


def _manifest(
    setting: str, row: Setting, options: Options, counts: Mapping[str, int]
) -> dict[str, Any]:
    """The content of MANIFEST."""
    manifest = {
        "generator_version": row.version,
        "setting": setting,
        "seed": options.seed,
        "size": options.size,
    }
    if options.kind:
        manifest["kind"] = options.kind
    if options.num_categories is not None:
        manifest["categories"] = options.num_categories
    return manifest | {f"num_{split}": count for split, count in counts.items()}


def _claim(root: Path, manifest: Mapping[str, Any]) -> None:
    """Writes the manifest, or raises if an existing one differs or the folder is not ours."""
    path = root / MANIFEST
    if path.exists():
        try:
            there = {"setting": "s4"} | json.loads(path.read_text())  # the oldest do not say
        except (ValueError, TypeError) as error:
            raise InputError(f"{path}: not the options of generated clips ({error})") from error
        differences = [
            f"  {key}: {there.get(key)} there, {manifest.get(key)} asked for"
            for key in sorted(there.keys() | manifest.keys())
            if there.get(key) != manifest.get(key)
        ]
        if differences:
            raise InputError(
                f"{root} holds clips generated with other options:\n"
                + "\n".join(differences)
                + "\nDelete the folder, choose another one, or ask for the same options."
            )
        return
    if root.exists() and any(item.name != _UNFINISHED_MANIFEST for item in root.iterdir()):
        raise InputError(
            f"{root} is not empty and has no {MANIFEST}: it does not come from this generator. "
            "Choose a new or an empty folder."
        )
    write_atomically(path, json.dumps(manifest, indent=2) + "\n")


def _write_clip(job: tuple[Path, str, Options, str, int]) -> None:
    root, setting, options, split, index = job
    row = SETTINGS[setting]
    row.write(root, row.plan(options, split, index), options)


def _render_all(jobs: list[tuple], workers: int) -> None:
    """Renders clips in this process or in several, with progress."""
    if not jobs:
        return
    print(f"generating clips: {len(jobs)}", file=sys.stderr, flush=True)
    with Progress("generating", len(jobs), "clip") as progress:
        if workers <= 1:
            for job in jobs:
                _write_clip(job)
                progress.add()
            return
        with _make_pool(min(workers, len(jobs))) as pool:
            for _ in pool.imap_unordered(_write_clip, jobs, chunksize=4):
                progress.add()


def _make_pool(workers: int) -> multiprocessing.pool.Pool:
    """Processes that leave Ctrl-C to this one, which then ends them.

    They are spawned, not forked: the caller may hold threads (jax does).
    """
    if threading.current_thread() is not threading.main_thread():
        return multiprocessing.get_context("spawn").Pool(workers)
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the new processes inherit it
    try:
        return multiprocessing.get_context("spawn").Pool(workers)
    finally:
        signal.signal(signal.SIGINT, handler)
