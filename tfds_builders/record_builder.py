"""A TFDS builder of raw records, written in shards and without TensorFlow."""

import abc
import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import tensorflow_datasets as tfds
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder

from avs_jax.data.avsbench_folders import SPLITS
from tfds_builders import features, shards
from tfds_builders.clip_files import DatasetFilesError
from tfds_builders.shards import Shard, ShardReport, Source


class Setting(Protocol):
    """A dataset's folders: those of AVSBench (avs_jax/data/avsbench_folders.py), of queries.

    Attributes:
      dataset: TFDS name. title: for people.
      layouts: with name and description; the first one is the default.
      how_to_get: the dataset, for error messages.
    """

    dataset: str
    title: str
    layouts: Sequence[Any]
    how_to_get: str

    def layouts_present(self, root: pathlib.Path) -> Sequence[Any]:
        """The layouts that `root` holds."""

    def find_root(self, folder: str | os.PathLike) -> pathlib.Path:
        """The dataset's folder: the one given, or one in it; else raises a DatasetLayoutError."""


@dataclasses.dataclass
class LayoutConfig(tfds.core.BuilderConfig):
    """A layout as TFDS wants it."""

    layout: Any = None


def make_configs(setting: Setting) -> list[LayoutConfig]:
    """A TFDS configuration per layout of a setting."""
    return [LayoutConfig(name=x.name, description=x.description, layout=x) for x in setting.layouts]


class RecordBuilder(FileReaderBuilder, skip_registration=True):
    """Reads, checks and writes every record of a dataset, in the dataset's order.

    Args:
      skip_bad: leave records with missing or damaged files out, instead of failing.
      use_beam: write through Apache Beam (the runner and its options are download_and_prepare's).
      **kwargs: of the base class (data_dir, config, version).
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}

    SETTING: Setting
    HOMEPAGE = ""
    RECORDS = "clips"  # what they are called
    SPLITS: Sequence[str] = SPLITS

    def __init__(self, *, skip_bad: bool = False, use_beam: bool = False, **kwargs: Any):
        self.skip_bad, self.use_beam = skip_bad, use_beam
        super().__init__(**{"file_format": "array_record"} | kwargs)

    @staticmethod
    @abc.abstractmethod
    def record_features() -> tfds.features.FeaturesDict:
        """The features of a record."""

    @abc.abstractmethod
    def list_sources(self, root: pathlib.Path) -> tuple[Mapping[str, Sequence[Source]], list[str]]:
        """Records to read per split, and all that is wrong before any file is read."""

    @abc.abstractmethod
    def describe(
        self, root: pathlib.Path, kept: Sequence[Source], reports: Sequence[ShardReport]
    ) -> dict[str, Any]:
        """Metadata beside source, num_clips, num_skipped and skipped.

        Args:
          root: folder of the dataset.
          kept: what the records were read from, never empty.
          reports: of the shards.
        """

    @staticmethod
    @abc.abstractmethod
    def summarize(metadata: Mapping[str, Any]) -> str:
        """What the records of an existing dataset hold, in a few words."""

    # ---- what TFDS calls ----

    def _log_download_bytes(self) -> None:
        """Nothing: TFDS would speak of a download, and there is none."""

    def _log_download_done(self) -> None:
        """Nothing, likewise."""

    def _info(self) -> tfds.core.DatasetInfo:
        return features.DatasetInfo(
            builder=self,
            description=f"{self.SETTING.title}. {self.builder_config.description}.",
            homepage=self.HOMEPAGE,
            features=self.record_features(),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,  # the dataset's order; readers shuffle by index
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
        sources, row_problems = self.list_sources(root)
        folder = self.shards_dir(pathlib.Path(self.data_dir).parent)
        plan: list[Shard] = []
        for split in self.SPLITS:
            plan += shards.cut_shards(split, sources.get(split, ()), folder)
        if not plan:
            raise DatasetFilesError(row_problems or [f"{root}: lists no {self.RECORDS}"], 0, 0)
        reports = shards.write_all(plan, self._pipeline(download_config))
        bad = {name: lines for report in reports for name, lines in report.bad.items()}
        problems = row_problems + [line for lines in bad.values() for line in lines]
        num_good, num_bad = sum(r.num_clips for r in reports), len(row_problems) + len(bad)
        if not num_good or (problems and not self.skip_bad):
            raise DatasetFilesError(problems, num_good, num_bad, folder)
        splits = shards.gather(plan, reports, pathlib.Path(self.data_dir), self.name)
        self.info.set_splits(tfds.core.SplitDict(splits))
        kept = [
            source
            for shard, report in zip(plan, reports, strict=True)
            for source in shard.clips
            if source.clip_id not in report.bad
        ]
        self.info.metadata.update(  # readers and evaluation reports quote it
            source=str(root),
            num_clips=num_good,
            num_skipped=num_bad,
            skipped=problems,
            **self.describe(root, kept, reports),
        )

    def _pipeline(self, download_config: Any) -> Any | None:
        if not self.use_beam:
            return None
        beam = tfds.core.lazy_imports.apache_beam
        return beam.Pipeline(
            runner=download_config.beam_runner, options=download_config.beam_options
        )

    @classmethod
    def shards_dir(cls, folder: pathlib.Path) -> pathlib.Path:
        """Where the shards of an unfinished build are, in the folder of the dataset's versions."""
        return folder / f".parts.{cls.VERSION}"
