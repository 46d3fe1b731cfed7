"""The builder of AVSBench's three settings; avs_jax/data/avsbench_folders.py has their folders.

A setting is a subclass of `AVSBenchBuilder` that names it. The csv lists the clips, a layout says
where the files of a clip are.
"""

import collections
import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder

from avs_jax.data.avsbench_csv import Row, read_rows
from avs_jax.data.avsbench_folders import (
    CLASSES,
    MANIFEST,
    OBJECTS,
    S4_CATEGORIES,
    SPLITS,
    DatasetLayoutError,
    Layout,
    Setting,
)
from avs_jax.data.flow_files import find_flow_root, has_first_flow, read_settings
from avs_jax.data.input_files import read_json
from tfds_builders import features, shards
from tfds_builders.clip_files import ClipFiles, DatasetFilesError


@dataclasses.dataclass
class LayoutConfig(tfds.core.BuilderConfig):
    """A layout as TFDS wants it."""

    layout: Layout | None = None


def make_configs(setting: Setting) -> list[LayoutConfig]:
    """A TFDS configuration per layout of a setting."""
    return [LayoutConfig(name=x.name, description=x.description, layout=x) for x in setting.layouts]


def category_labels(setting: Setting, root: pathlib.Path) -> dict[str, int]:
    """Label of every category, from the class list in `root` where the setting has one.

    Raises:
      InputError: the class list is missing, or does not hold as many names as there are classes.
    """
    if setting.num_classes == 2:  # S4's; generated clips of MS3 use them too
        return {name: number + 1 for number, name in enumerate(S4_CATEGORIES)}
    names = list(read_json(root / CLASSES))
    if len(names) != setting.num_classes:
        raise DatasetLayoutError(
            f"{root / CLASSES}: {len(names)} classes, expected {setting.num_classes}"
        )
    return {name: position for position, name in enumerate(names)}  # whatever the values are


class AVSBenchBuilder(FileReaderBuilder, skip_registration=True):
    """One raw record per clip (tfds_builders/features.py), in the order of the csv.

    Args:
      skip_bad: leave clips with missing or damaged files out, instead of failing.
      flow_dir: folder of stored flow, or None.
      use_beam: write through Apache Beam (the runner and its options are download_and_prepare's).
      **kwargs: of the base class (data_dir, config, version).
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}

    SETTING: Setting

    def __init__(
        self,
        *,
        skip_bad: bool = False,
        flow_dir: str | os.PathLike | None = None,
        use_beam: bool = False,
        **kwargs: Any,
    ):
        self.skip_bad, self.use_beam = skip_bad, use_beam
        self.flow_dir = pathlib.Path(flow_dir).expanduser().absolute() if flow_dir else None
        super().__init__(**{"file_format": "array_record"} | kwargs)

    # ---- what TFDS calls ----

    def _info(self) -> tfds.core.DatasetInfo:
        return features.DatasetInfo(
            builder=self,
            description=f"AVSBench {self.SETTING.title}. {self.builder_config.description}.",
            homepage="https://github.com/OpenNLPLab/AVSBench",
            features=features.record_features(),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,  # the order of the csv; readers shuffle by index
        )

    def _download_and_prepare(
        self, dl_manager: tfds.download.DownloadManager, download_config: Any
    ) -> None:
        """Reads, checks and writes everything in shards; they become the dataset at the end.

        Raises:
          DatasetFilesError: files are missing or damaged; the good shards are kept.
        """
        if self.info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
            raise ValueError(f"file format {self.info.file_format}: only array_record is written")
        root = self.SETTING.find_root(dl_manager.manual_dir)
        layout = self.builder_config.layout
        clips, row_problems = list_clips(self.SETTING, root, layout, self.flow_dir)
        folder = self.shards_dir(pathlib.Path(self.data_dir).parent)
        plan = [x for split in SPLITS for x in shards.cut_shards(split, clips[split], folder)]
        if not plan:
            nothing = [f"{root / self.SETTING.csv}: no clip"]
            raise DatasetFilesError(row_problems or nothing, 0, 0)
        reports = shards.write_all(plan, self._pipeline(download_config))
        bad = {name: lines for report in reports for name, lines in report.bad.items()}
        problems = row_problems + [line for lines in bad.values() for line in lines]
        num_good, num_bad = sum(r.num_clips for r in reports), len(row_problems) + len(bad)
        if not num_good or (problems and not self.skip_bad):
            raise DatasetFilesError(problems, num_good, num_bad, folder)
        splits = shards.gather(plan, reports, pathlib.Path(self.data_dir), self.name)
        self.info.set_splits(tfds.core.SplitDict(splits))
        kept = [x for shard in plan for x in shard.clips if x.clip_id not in bad]
        is_generated = (root / MANIFEST).is_file()
        kinds = collections.Counter()
        for report in reports:
            kinds.update(report.flow_kinds)
        self.info.metadata.update(  # readers and evaluation reports quote it
            source=str(root),
            ground_truth="generated clips" if is_generated else layout.ground_truth,
            num_clips=num_good,
            num_skipped=num_bad,
            skipped=problems,
            has_pre_masks=any(clip.pre_masks for clip in kept),
            flow_dir=str(self.flow_dir or ""),
            flow_kinds=dict(kinds),
            flow_has_first=kept[0].flow_has_first,
        )
        if self.SETTING.num_classes > 2:
            self.info.metadata["classes"] = list(category_labels(self.SETTING, root))

    def _pipeline(self, download_config: Any) -> Any | None:
        if not self.use_beam:
            return None
        beam = tfds.core.lazy_imports.apache_beam
        return beam.Pipeline(
            runner=download_config.beam_runner, options=download_config.beam_options
        )

    def _log_download_bytes(self) -> None:
        """TFDS announces a download; nothing is downloaded."""

    def _log_download_done(self) -> None:
        """Likewise."""

    @classmethod
    def shards_dir(cls, folder: pathlib.Path) -> pathlib.Path:
        """Where the shards of an unfinished build are, in the folder of the dataset's versions."""
        return folder / f".parts.{cls.VERSION}"


def list_clips(
    setting: Setting, root: pathlib.Path, layout: Layout, flow_dir: pathlib.Path | None = None
) -> tuple[dict[str, list[ClipFiles]], list[str]]:
    """Clips per split in the csv's order, and all that is wrong before any file is read.

    Args:
      root: folder of the csv.
      flow_dir: folder of stored flow.

    Raises:
      InputError: `root` does not hold this layout, flow_dir holds no flow, or a list of clips
        cannot be read.
    """
    if next(root.glob(layout.marker), None) is None:
        present = ", ".join(x.name for x in setting.layouts_present(root)) or "none"
        raise DatasetLayoutError(
            f"layout {layout.name!r} needs {root / layout.marker}, which does not exist; "
            f"layouts found below {root}: {present}\n{setting.how_to_get}"
        )
    rows, problems = read_rows(setting, root)
    pre_masks, problem = _choose_pre_masks(root, layout, rows)
    problems += [problem] if problem else []
    visible = _read_visible_labels(setting, root)
    flow_root = find_flow_root(setting, flow_dir) if flow_dir else None
    has_first = has_first_flow(read_settings(flow_root)) if flow_root else None
    clips = collections.defaultdict(list)
    for row in rows:
        every_frame, masks = range(row.num_frames), layout.masks[row.split]
        frames = [row.path(root, layout.frames[row.split], t) for t in every_frame]
        colors = [row.path(root, pre_masks[row.split], t) for t in every_frame if pre_masks]
        is_known = row.category in setting.categories
        clips[row.split].append(
            ClipFiles(
                clip_id=row.name,
                category=row.category,
                label=setting.categories.index(row.category) + 1 if is_known else 0,
                frames=tuple(frames),
                masks={t: row.path(root, masks, t) for t in row.with_mask},
                pre_masks=tuple(colors),
                wav=row.path(root, layout.wav),
                flow_dir=row.path(flow_root, setting.flow) if flow_root else None,
                flow_has_first=has_first,
                visible_labels=visible.get(row.name, ()),
                mask_sizes=layout.mask_sizes,
                num_classes=setting.num_classes,
            )
        )
    return clips, problems


def _read_visible_labels(setting: Setting, root: pathlib.Path) -> Mapping[str, tuple[int, ...]]:
    """Clip -> labels of all categories in its frames, where the clips are generated."""
    path = root / OBJECTS
    if not path.exists():
        return {}
    label_of = category_labels(setting, root)
    try:
        return {
            clip: tuple(label_of[name] for name in names) for clip, names in read_json(path).items()
        }
    except (KeyError, TypeError) as error:
        raise DatasetLayoutError(
            f"{path}: expected lists of known categories, found {error}"
        ) from error


def _choose_pre_masks(
    root: pathlib.Path, layout: Layout, rows: list[Row]
) -> tuple[Mapping[str, str] | None, str]:
    """The templates of the color masks in use, if any, and what is wrong with that."""
    unused = ""
    for templates in layout.pre_masks:
        if any(row.path(root, templates[row.split]).is_file() for row in rows):
            return templates, ""
        example = templates[SPLITS[0]]
        folder = root / example.partition("{")[0]
        if folder.is_dir():
            unused = f"{folder}: holds no color mask of a listed clip, expected {example}"
    return None, unused
