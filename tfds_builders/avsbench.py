"""The builder of AVSBench's three settings; what differs between them is a table of templates.

A csv lists the clips. A `Layout` says where the files of a clip are, as templates over

  {name} {split} {category} {subset}   of the clip
  {number}                             the frame, from 1
  {t}                                  the frame, from 0

A setting is a subclass of `AVSBenchBuilder` that names its csv, its layouts and how a row of the
csv becomes a `Row`.
"""

import abc
import collections
import csv
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder

from tfds_builders import common, parts

SPLITS = ("train", "val", "test")
OBJECTS = "generated_objects.json"  # only beside generated clips: name -> categories in the picture
MANIFEST = "generated_clips.json"  # likewise: the generator's parameters


@dataclasses.dataclass
class Layout(tfds.core.BuilderConfig):
    """One way in which the files of a setting are laid out.

    Attributes:
      marker: glob, below the folder of the csv, of something that only this layout has.
      frames, masks: template per split.
      pre_masks: templates per split of the colour masks, alternatives; the first in use counts.
      wav: template.
      mask_sizes: (width, height) that a mask may have besides its frame's.
      ground_truth: where the masks come from; reports name it.
    """

    marker: str = ""
    frames: Mapping[str, str] = dataclasses.field(default_factory=dict)
    masks: Mapping[str, str] = dataclasses.field(default_factory=dict)
    pre_masks: tuple[Mapping[str, str], ...] = ()
    wav: str = ""
    mask_sizes: tuple[tuple[int, int], ...] = ()
    ground_truth: str = ""


def every_split(template: str) -> dict[str, str]:
    """The same template for every split."""
    return dict.fromkeys(SPLITS, template)


def vct384_layout(folder: str, frame: str, mask: str, wav: str) -> Layout:
    """What VCT's tools leave of AVSBench-object, in {folder}_384: masks of 384 px in train alone.

    Args:
      folder: s4_data or ms3_data.
      frame, mask: templates below their folders, without the ending.
      wav: template.
    """
    data = f"{folder}_384"
    return Layout(
        name="vct384",
        description="VCT's 384 px frames, masks rebuilt from AVSBench-semantic",
        marker=f"{data}/visual_frames_384",
        frames=every_split(f"{data}/visual_frames_384/{frame}.png"),
        masks={
            split: f"{data}/gt_masks_{384 if split == 'train' else 224}/{mask}.png"
            for split in SPLITS
        },
        pre_masks=(every_split(f"{data}/pre_SAM_mask_384/{frame}_mask_color.png"),),
        wav=wav,
        mask_sizes=((224, 224),),
        ground_truth="AVSBench-semantic masks (non-black), as VCT rebuilds them",
    )


@dataclasses.dataclass(frozen=True)
class Row:
    """What a row of the csv says about its clip.

    Attributes:
      name: of the clip, unique.
      category: what sounds, or "" where the csv does not say.
      label: of the category, from 1; 0 where there is no single one.
      subset: v1s, v1m or v2 in AVSBench-semantic.
      with_mask: the frames, from 0, that have ground truth.
    """

    name: str
    split: str
    num_frames: int
    with_mask: tuple[int, ...]
    category: str = ""
    label: int = 0
    subset: str = ""

    def path(self, root: pathlib.Path, template: str, t: int = 0) -> pathlib.Path:
        """A template filled in for frame t."""
        fields = dataclasses.asdict(self)
        return root / template.format(number=t + 1, t=t, **fields)


class AVSBenchBuilder(FileReaderBuilder, skip_registration=True):
    """One raw record per clip (features: tfds_builders/common.py), in the order of the csv.

    Args:
      skip_bad: leave clips with missing or damaged files out, instead of failing.
      flow_dir: folder of stored flow, or None.
      use_beam: write through Apache Beam (the runner and its options are download_and_prepare's).
      **kwargs: of the base class (data_dir, config, version).
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}

    TITLE: str  # of the setting
    CSV: str
    COLUMNS: tuple[str, ...]  # that the csv must have
    NAME: str  # the column with the clip's name; "": the first, whatever it is called
    FOLDERS: tuple[str, ...]  # names under which the download has the folder of the csv
    FLOW: tuple[str, str]  # its folder below flow_dir, and the template below that
    EXPECTED: Mapping[str, int]  # clips per split of the whole dataset
    NUM_CLASSES = 2

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

    @classmethod
    @abc.abstractmethod
    def parse_row(cls, row: Mapping[str, str]) -> Row:
        """A row of the csv, its columns and "name".

        Raises:
          ValueError: it cannot be one; says why. (Name and split are checked elsewhere.)
        """

    @classmethod
    def categories(cls, root: pathlib.Path) -> Mapping[str, int]:
        """Label of each category that OBJECTS may name."""
        raise common.DatasetLayoutError(f"{root / OBJECTS}: {cls.TITLE} has no categories")

    @classmethod
    def find_root(cls, manual_dir: str | os.PathLike) -> pathlib.Path:
        """The folder that holds the csv: manual_dir or a subfolder of the download's name.

        Raises:
          common.DatasetLayoutError: naming the folders looked in and how AVSBench is obtained.
        """
        manual_dir = pathlib.Path(manual_dir).expanduser().absolute()
        candidates = [manual_dir, *(manual_dir / name for name in cls.FOLDERS)]
        for folder in candidates:
            if (folder / cls.CSV).is_file():
                return folder
        looked = "\n".join(
            f"  {folder}" + ("" if folder.is_dir() else " (no such folder)")
            for folder in candidates
        )
        how = cls.MANUAL_DOWNLOAD_INSTRUCTIONS
        raise common.DatasetLayoutError(f"{cls.CSV} not found; looked in\n{looked}\n{how}")

    @classmethod
    def layouts_present(cls, root: pathlib.Path) -> list[str]:
        """Names of the layouts that `root` holds."""
        return [
            layout.name
            for layout in cls.BUILDER_CONFIGS
            if next(root.glob(layout.marker), None) is not None
        ]

    # ---- the two methods of a TFDS builder ----

    def _info(self) -> tfds.core.DatasetInfo:
        return common.DatasetInfo(
            builder=self,
            description=f"AVSBench {self.TITLE}. {self.builder_config.description}.",
            homepage="https://github.com/OpenNLPLab/AVSBench",
            features=common.record_features(),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,  # the order of the csv; readers shuffle by index
        )

    def _download_and_prepare(
        self, dl_manager: tfds.download.DownloadManager, download_config: Any
    ) -> None:
        """Reads, checks and writes everything in parts; they become the dataset at the end.

        Raises:
          common.DatasetFilesError: files are missing or damaged; the good parts are kept.
        """
        if self.info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
            raise ValueError(f"file format {self.info.file_format}: only array_record is written")
        root = self.find_root(dl_manager.manual_dir)
        clips, row_problems = self.list_clips(root, self.builder_config, self.flow_dir)
        folder = self.parts_dir(pathlib.Path(self.data_dir).parent)
        plan = [part for split in SPLITS for part in parts.cut(split, clips[split], folder)]
        if not plan:
            raise common.DatasetFilesError(row_problems or [f"{root / self.CSV}: no clip"], 0, 0)
        reports = parts.write_all(plan, self._pipeline(download_config))
        bad = {name: lines for report in reports for name, lines in report.bad.items()}
        problems = row_problems + [line for lines in bad.values() for line in lines]
        num_good, num_bad = sum(r.num_clips for r in reports), len(row_problems) + len(bad)
        if not num_good or (problems and not self.skip_bad):
            raise common.DatasetFilesError(problems, num_good, num_bad, folder)
        self.info.set_splits(
            tfds.core.SplitDict(parts.gather(plan, reports, pathlib.Path(self.data_dir), self.name))
        )
        self._describe(root, plan, reports, problems, num_bad)

    def _describe(self, root, plan, reports, problems, num_bad) -> None:
        """The metadata that readers and evaluation reports quote."""
        is_generated = (root / MANIFEST).is_file()
        kinds = collections.Counter()
        for report in reports:
            kinds.update(report.flow_kinds)
        self.info.metadata.update(
            source=str(root),
            ground_truth="generated clips" if is_generated else self.builder_config.ground_truth,
            num_clips=sum(report.num_clips for report in reports),
            num_skipped=num_bad,
            skipped=problems,
            has_pre_masks=any(
                clip.pre_masks and clip.clip_id not in report.bad
                for part, report in zip(plan, reports, strict=True)
                for clip in part.clips
            ),
            flow_dir=str(self.flow_dir or ""),
            flow_kinds=dict(kinds),
        )

    def _pipeline(self, download_config: Any) -> Any | None:
        if not self.use_beam:
            return None
        beam = tfds.core.lazy_imports.apache_beam
        return beam.Pipeline(
            runner=download_config.beam_runner, options=download_config.beam_options
        )

    @classmethod
    def parts_dir(cls, folder: pathlib.Path) -> pathlib.Path:
        """Where the parts of an unfinished build are, in the folder of the dataset's versions."""
        return folder / f".parts.{cls.VERSION}"

    # ---- from the csv to files ----

    @classmethod
    def list_clips(
        cls, root: pathlib.Path, layout: Layout, flow_dir: pathlib.Path | None = None
    ) -> tuple[dict[str, list[common.ClipFiles]], list[str]]:
        """Clips per split in the csv's order, and all that is wrong before any file is read.

        Raises:
          common.DatasetLayoutError: `root` does not hold this layout, or flow_dir no flow.
        """
        if next(root.glob(layout.marker), None) is None:
            present = ", ".join(cls.layouts_present(root)) or "none"
            raise common.DatasetLayoutError(
                f"layout {layout.name!r} needs {root / layout.marker}, which is not there; "
                f"layouts found below {root}: {present}\n{cls.MANUAL_DOWNLOAD_INSTRUCTIONS}"
            )
        rows, problems = cls.read_rows(root)
        pre_masks, problem = _choose_pre_masks(root, layout, rows)
        problems += [problem] if problem else []
        flow_root = cls._flow_root(flow_dir)
        visible, label_of = {}, {}
        if (root / OBJECTS).is_file():
            visible, label_of = json.loads((root / OBJECTS).read_text()), cls.categories(root)
        clips = collections.defaultdict(list)
        for row in rows:
            every_frame = range(row.num_frames)
            paths = [row.path(root, layout.frames[row.split], t) for t in every_frame]
            colours = [row.path(root, pre_masks[row.split], t) for t in every_frame if pre_masks]
            clips[row.split].append(
                common.ClipFiles(
                    clip_id=row.name,
                    category=row.category,
                    label=row.label,
                    frames=tuple(paths),
                    masks={t: row.path(root, layout.masks[row.split], t) for t in row.with_mask},
                    pre_masks=tuple(colours),
                    wav=row.path(root, layout.wav),
                    flow_dir=row.path(flow_root, cls.FLOW[1]) if flow_root else None,
                    visible_labels=tuple(label_of[c] for c in visible.get(row.name, ())),
                    mask_sizes=layout.mask_sizes,
                    num_classes=cls.NUM_CLASSES,
                )
            )
        return clips, problems

    @classmethod
    def read_rows(cls, root: pathlib.Path) -> tuple[list[Row], list[str]]:
        """The csv's rows that can be clips, and what is wrong with the others."""
        rows, problems, seen = [], [], set()
        for line, values in cls.csv_lines(root):
            try:
                row = cls._parse_checked(values, seen)
            except ValueError as error:
                problems.append(f"{root / cls.CSV}, line {line}: {error}")
                continue
            seen.add(row.name)
            rows.append(row)
        return rows, problems

    @classmethod
    def csv_lines(cls, root: pathlib.Path) -> Iterator[tuple[int, dict[str, str]]]:
        """Line number and columns, "name" among them, of every row of the csv.

        Raises:
          common.DatasetLayoutError: columns are missing.
        """
        path = root / cls.CSV
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            if set(cls.COLUMNS) - set(columns):
                raise common.DatasetLayoutError(
                    f"{path}: columns {columns}, expected {', '.join(cls.COLUMNS)} among them"
                )
            for fields in reader:
                values = {k: (v or "").strip() for k, v in fields.items() if isinstance(k, str)}
                values["name"] = values[cls.NAME or columns[0]]
                yield reader.line_num, values

    @classmethod
    def _parse_checked(cls, values: Mapping[str, str], seen: set[str]) -> Row:
        if values["split"] not in SPLITS:
            raise ValueError(
                f"split {values['split']!r} of {values['name']} is none of {', '.join(SPLITS)}"
            )
        row = cls.parse_row(values)
        if not common.safe_name(row.name):
            raise ValueError(f"name {row.name!r} cannot be a file's")
        if row.name in seen:
            raise ValueError(f"{row.name} is listed twice")
        return row

    @classmethod
    def _flow_root(cls, flow_dir: pathlib.Path | None) -> pathlib.Path | None:
        """The folder that holds the splits' flow; an error where the one given holds none."""
        if flow_dir is None:
            return None
        folders = (flow_dir / cls.FLOW[0], flow_dir)
        for folder in folders:
            if any((folder / split).is_dir() for split in SPLITS):
                return folder
        raise common.DatasetLayoutError(
            f"no flow found: looked for {{{','.join(SPLITS)}}} in {folders[0]} and {folders[1]}"
        )


def _choose_pre_masks(
    root: pathlib.Path, layout: Layout, rows: list[Row]
) -> tuple[Mapping[str, str] | None, str]:
    """The templates of the colour masks in use, if any, and what is wrong with that."""
    unused = ""
    for templates in layout.pre_masks:
        if any(row.path(root, templates[row.split]).is_file() for row in rows):
            return templates, ""
        folder = root / templates[SPLITS[0]].partition("{")[0]
        if folder.is_dir():
            example = templates[SPLITS[0]]
            unused = f"{folder}: holds no colour mask of a listed clip, expected {example}"
    return None, unused
