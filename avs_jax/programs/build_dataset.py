"""Builds a dataset's array_record files from its folder, without TensorFlow.

  avs-jax data build --dataset=avsbench_s4 --manual_dir=Single-source --data_dir=DIR

Every file is read and checked; all missing or damaged ones are listed, and no dataset is made. With
--skip_bad their clips are left out and counted in the dataset's metadata. Clips are written in
shards: a build that was killed, or that failed for some files, is resumed, as long as the files of
a finished shard have not changed. Several processes or machines can read and write a large dataset
through Apache Beam (the extra `beam`), which must see the folders under the same paths. Here are
four processes of this machine:

  ... --dataset=avsbench_semantic --beam=direct_running_mode=multi_processing,direct_num_workers=4

`--dataset=avsbench_s4/vct384` chooses a layout where the folder holds several. An existing dataset
is kept unless --overwrite is given; asking for it from another folder or with other motion is an
error.
"""

import argparse
import contextlib
import fcntl
import importlib
import os
import pathlib
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from avs_jax.data.avsbench_folders import (
    BY_DATASET,
    DatasetLayoutError,
)
from avs_jax.data.records import read_folder
from avs_jax.files import sync_folder
from avs_jax.flag_style import FlagParser
from avs_jax.spec import InputError
from avs_jax.stopping import sigterm_as_interrupt, stop_status
from tfds_builders.record_builder import Setting

MOTION_FLAGS = ("flow_dir", "track_dir")
DATASETS = (*BY_DATASET, "qvhighlights", "tvsum", "own_moments", "refavs")


def main(argv: list[str] | None = None) -> int:
    """Parses the flags and builds; returns the exit status."""
    parser = FlagParser(prog="avs-jax data build", description=__doc__)
    parser.add_argument("--dataset", required=True, help=f"{', '.join(DATASETS)}; NAME/LAYOUT")
    parser.add_argument("--manual_dir", required=True, help="the folder to read")
    parser.add_argument("--data_dir", required=True, help="where the records go")
    parser.add_argument("--flow_dir", help="folder of stored optical flow")
    parser.add_argument("--track_dir", help="folder of motion tracks (avs-jax flow --source=track)")
    parser.add_argument(
        "--beam", metavar="KEY=VALUE,...", help="write through Apache Beam with these options"
    )
    parser.add_argument("--skip_bad", action="store_true", help="leave damaged clips out")
    parser.add_argument("--overwrite", action="store_true", help="rebuild an existing dataset")
    args = parser.parse_args(argv)
    name, _, layout = args.dataset.partition("/")
    if name not in DATASETS:
        parser.error(f"--dataset={args.dataset}: no such builder; there are {', '.join(DATASETS)}")
    for flag in MOTION_FLAGS:
        if getattr(args, flag) and name not in BY_DATASET:
            parser.error(f"--{flag}: {name} has no optical flow")
    tfds.disable_progress_bar()  # the builders show their own, with totals
    try:
        with sigterm_as_interrupt():
            build(name, layout, args)
    except (InputError, OSError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        line, status = stop_status(error)
        print(f"{line}; the same command resumes", file=sys.stderr)
        return status
    except RuntimeError as error:
        if "No space left" not in str(error):  # so TFDS reports a full disk
            raise
        print(f"error: {error}; nothing was built", file=sys.stderr)
        return 1
    return 0


def build(name: str, layout: str, args: argparse.Namespace) -> None:
    """Builds one dataset, or says that it exists.

    Raises:
      InputError: the folder or the layout does not exist, or files are missing or damaged.
      BlockingIOError: another process builds into the same folder.
      ModuleNotFoundError: --beam without Apache Beam.
    """
    beam_options = None if args.beam is None else _beam_options(args.beam)
    module = importlib.import_module(f"tfds_builders.{name}.{name}_dataset_builder")
    setting = module.Builder.SETTING
    if not layout:
        layout = _choose_layout(setting, args.manual_dir, args.data_dir)
    choices = [x.name for x in setting.layouts]
    if layout not in choices:
        raise DatasetLayoutError(
            f"--dataset={name}/{layout}: no such layout; there are {', '.join(choices)}"
        )
    data_dir = pathlib.Path(args.data_dir).expanduser().absolute()
    # Settled before the builder is made: it would read the metadata of an existing dataset.
    version_dir = data_dir / name / layout / str(module.Builder.VERSION)
    with _locked(version_dir.parent):
        _remove_leftovers(version_dir)
        if version_dir.is_dir() and not args.overwrite:
            _check_same_source(version_dir, setting, args)
            _report(version_dir, module.Builder, "is already built; --overwrite rebuilds it")
            return
        root = setting.find_root(args.manual_dir)  # before anything is touched
        print(f"building {version_dir} from {root}", flush=True)
        with _set_aside(version_dir), _tidied(data_dir, name):
            builder = module.Builder(
                data_dir=str(data_dir),
                config=layout,
                skip_bad=args.skip_bad,
                use_beam=beam_options is not None,
                **{flag: folder for flag in MOTION_FLAGS if (folder := getattr(args, flag))},
            )
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(
                    manual_dir=args.manual_dir, beam_options=beam_options
                ),
                file_format="array_record",
            )
        shutil.rmtree(module.Builder.shards_dir(version_dir.parent), ignore_errors=True)
        _report(version_dir, module.Builder, "built")


def _check_same_source(
    version_dir: pathlib.Path, setting: Setting, args: argparse.Namespace
) -> None:
    """Raises where an existing dataset is not the one asked for; a missing source is no error."""
    metadata = read_folder(version_dir).metadata
    given = {flag: getattr(args, flag) for flag in MOTION_FLAGS}
    asked = {
        flag: str(pathlib.Path(folder).expanduser().absolute()) if folder else ""
        for flag, folder in given.items()
    }
    with contextlib.suppress(DatasetLayoutError):
        asked["source"] = str(setting.find_root(args.manual_dir))
    for name, value in asked.items():
        if metadata.get(name, "") != value:
            raise DatasetLayoutError(
                f"{version_dir} was built with {name} {metadata.get(name) or 'none'}, now it is "
                f"{value or 'none'}: rebuild it with --overwrite, or choose another --data_dir"
            )


def _beam_options(text: str) -> Any:
    """Beam's pipeline options from "key=value,key=value"."""
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise ModuleNotFoundError(
            f"--beam needs Apache Beam: pip install -e .[beam] ({error})"
        ) from error
    return PipelineOptions([f"--{option}" for option in text.split(",") if option])


@contextlib.contextmanager
def _tidied(data_dir: pathlib.Path, name: str) -> Iterator[None]:
    """Removes what TFDS makes on the way: empty folders, its note of a build that failed."""
    try:
        yield
    finally:
        for folder in (data_dir / "downloads" / "extracted", data_dir / "downloads"):
            with contextlib.suppress(OSError):  # only where empty
                folder.rmdir()
        if not any((data_dir / name).glob("*/*/dataset_info.json")):
            shutil.rmtree(data_dir / name / ".config", ignore_errors=True)


def _choose_layout(setting: Setting, manual_dir: str, data_dir: str) -> str:
    """The default layout, or the only one in the folder; says which."""
    default = setting.layouts[0].name
    try:
        present = [x.name for x in setting.layouts_present(setting.find_root(manual_dir))]
    except DatasetLayoutError:
        home = pathlib.Path(data_dir).expanduser() / setting.dataset / default
        if any(home.glob("*/dataset_info.json")):  # built earlier; its source may be gone
            return default
        raise
    layout = present[0] if present else default
    if len(present) > 1:
        print(f"{manual_dir} holds the layouts {', '.join(present)}; building {layout}")
    return layout


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
    """Holds the folder against other builds; the lock ends with the process."""
    created = [p for p in (folder, *folder.parents) if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(f"another process is building in {folder}") from error
        yield
    finally:
        os.close(descriptor)
        for path in created:  # innermost first; a failed build leaves no empty folder
            with contextlib.suppress(OSError):
                path.rmdir()


def _remove_leftovers(version_dir: pathlib.Path) -> None:
    """Removes what a killed build left, and restores what it was about to replace."""
    leftovers = list(version_dir.parent.glob("incomplete.*"))
    if version_dir.is_dir() and not (version_dir / "dataset_info.json").is_file():
        leftovers.append(version_dir)
    for path in leftovers:
        print(f"removing {path}, left by a build that did not finish")
        shutil.rmtree(path)
    replaced = _replaced(version_dir)
    if replaced.is_dir():
        if version_dir.is_dir():
            shutil.rmtree(replaced)
        else:
            replaced.rename(version_dir)


@contextlib.contextmanager
def _set_aside(version_dir: pathlib.Path) -> Iterator[None]:
    """Keeps the previous version until the new one is complete and on the disk.

    TFDS fills a folder of its own choice and renames it, so `files.atomic_folder`, which yields the
    folder to fill, does not fit. After a kill, `_remove_leftovers` restores the previous version.
    """
    replaced = _replaced(version_dir)
    if version_dir.is_dir():
        version_dir.rename(replaced)
    try:
        yield
    except BaseException:
        if replaced.is_dir() and not version_dir.is_dir():
            replaced.rename(version_dir)
        raise
    sync_folder(version_dir)
    if replaced.is_dir():
        shutil.rmtree(replaced)


def _replaced(version_dir: pathlib.Path) -> pathlib.Path:
    return version_dir.with_name(f".replaced.{version_dir.name}")


def _report(version_dir: pathlib.Path, builder: type, what: str) -> None:
    folder = read_folder(version_dir)
    lengths = sorted(folder.shard_lengths.items())
    counts = ", ".join(f"{split} {sum(shards)}" for split, shards in lengths)
    noted = folder.metadata
    print(
        f"{version_dir} {what}: {counts} {builder.RECORDS}, {noted.get('num_skipped')} skipped; "
        f"{builder.summarize(noted)}; from {noted.get('source')}"
    )


if __name__ == "__main__":
    sys.exit(main())
