"""The builder of AVSBench's three settings; avs_jax/data/avsbench_folders.py has their folders.

A setting is a subclass of `AVSBenchBuilder` that names it. The csv lists the clips, a layout says
where the files of a clip are.
"""

import collections
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds

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
from avs_jax.data.flow_files import (
    find_flow_root,
    has_first_flow,
    read_settings,
    track_rate,
)
from avs_jax.data.input_files import read_json
from tfds_builders import features
from tfds_builders.clip_files import ClipFiles
from tfds_builders.record_builder import RecordBuilder
from tfds_builders.shards import ShardReport


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


class AVSBenchBuilder(RecordBuilder, skip_registration=True):
    """One raw record per clip (tfds_builders/features.py), in the order of the csv.

    Args:
      flow_dir: folder of stored flow, or None.
      track_dir: folder of motion tracks, or None.
      **kwargs: of the base class.
    """

    HOMEPAGE = "https://github.com/OpenNLPLab/AVSBench"

    def __init__(
        self,
        *,
        flow_dir: str | os.PathLike | None = None,
        track_dir: str | os.PathLike | None = None,
        **kwargs: Any,
    ):
        self.flow_dir, self.track_dir = (
            pathlib.Path(folder).expanduser().absolute() if folder else None
            for folder in (flow_dir, track_dir)
        )
        super().__init__(**kwargs)

    @staticmethod
    def record_features() -> tfds.features.FeaturesDict:
        return features.record_features()

    def list_sources(
        self, root: pathlib.Path
    ) -> tuple[Mapping[str, Sequence[ClipFiles]], list[str]]:
        layout = self.builder_config.layout
        return list_clips(self.SETTING, root, layout, self.flow_dir, self.track_dir)

    def describe(
        self, root: pathlib.Path, kept: Sequence[ClipFiles], reports: Sequence[ShardReport]
    ) -> dict[str, Any]:
        is_generated = (root / MANIFEST).is_file()
        kinds = collections.Counter()
        for report in reports:
            kinds.update(report.flow_kinds)
        truth = self.builder_config.layout.ground_truth
        described = {
            "ground_truth": "generated clips" if is_generated else truth,
            "has_pre_masks": any(clip.pre_masks for clip in kept),
            "flow_dir": str(self.flow_dir or ""),
            "flow_kinds": dict(kinds),
            "flow_has_first": kept[0].flow_has_first,
            "track_dir": str(self.track_dir or ""),
            "num_tracks": sum(clip.track is not None for clip in kept),
        }
        if self.SETTING.num_classes > 2:
            described["classes"] = list(category_labels(self.SETTING, root))
        return described

    @staticmethod
    def summarize(metadata: Mapping[str, Any]) -> str:
        kinds = sorted(metadata.get("flow_kinds", {}).items())
        flow = ", ".join(f"{kind} {count}" for kind, count in kinds)
        tracks = f"; tracks {metadata['num_tracks']}" if metadata.get("num_tracks") else ""
        return (
            f"color masks {'yes' if metadata.get('has_pre_masks') else 'no'}; flow {flow}{tracks}"
        )


def list_clips(
    setting: Setting,
    root: pathlib.Path,
    layout: Layout,
    flow_dir: pathlib.Path | None = None,
    track_dir: pathlib.Path | None = None,
) -> tuple[dict[str, list[ClipFiles]], list[str]]:
    """Clips per split in the csv's order, and all that is wrong before any file is read.

    Args:
      root: folder of the csv.
      flow_dir: folder of stored flow.
      track_dir: folder of motion tracks.

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
    objects = setting.object_masks
    objects = objects if objects and (root / objects.partition("{")[0]).is_dir() else ""
    flow_root = find_flow_root(setting, flow_dir) if flow_dir else None
    has_first = has_first_flow(read_settings(flow_root)) if flow_root else None
    track_root = find_flow_root(setting, track_dir) if track_dir else None
    rate = track_rate(track_root) if track_root else 0.0
    clips = collections.defaultdict(list)
    for row in rows:
        every_frame, masks = range(row.num_frames), layout.masks[row.split]
        frames = [row.path(root, layout.frames[row.split], t) for t in every_frame]
        colors = [row.path(root, pre_masks[row.split], t) for t in every_frame if pre_masks]
        named = [row.path(root, objects, t) for t in every_frame if objects]
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
                track_dir=row.path(track_root, setting.flow) if track_root else None,
                track_rate=rate,
                visible_labels=visible.get(row.name, ()),
                object_masks=tuple(named),
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
