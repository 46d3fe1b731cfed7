"""Building an index of task `align`: embeddings of every clip of a dataset, or of many videos.

The rows that an interrupted run has made stay in INDEX.part.npz, from which the same command
resumes; a longer run also writes it every SAVE_SECONDS.
"""

import json
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from avs_jax.data.decode import decode_text
from avs_jax.data.records import metadata, open_records
from avs_jax.inference.approximate_search import remove_graphs
from avs_jax.inference.embedding_search import (
    MEDIA,
    embed,
    read_clips,
    record_of,
    weights_checksum,
)
from avs_jax.inference.predictor import Predictor
from avs_jax.progress import tracked
from avs_jax.results.embedding_index import EmbeddingIndex
from avs_jax.spec import InputError, first_line

SAVE_SECONDS = 600.0
NOTED = "noted_by_source"  # key of the facts that only the part has

Rows = list[dict[str, Any]]


def index_records(predictor: Predictor, split: str, path: str | os.PathLike) -> EmbeddingIndex:
    """Writes the index of a split of config.data.dataset, and returns it."""
    data, records = predictor.config.data, open_records(predictor.config, split)
    data_dir = os.path.abspath(os.path.expanduser(data.data_dir))
    facts = {"dataset": data.dataset, "data_dir": data_dir, "split": split}

    def make_rows(place: int) -> Rows:
        record = records[place]
        row = {"name": decode_text(record["clip_id"]), "source": "", "place": place}
        row["category"] = decode_text(record.get("category", ""))
        return [row | _media_embeds(embed(predictor, {**record, "texts": ()}))]

    sources = {("", place): lambda place=place: make_rows(place) for place in range(len(records))}
    noted = {"": [len(records), metadata(records)]}
    return _build(predictor, sources, facts, noted, path, "clip")


def index_videos(
    predictor: Predictor, videos: Sequence[pathlib.Path], path: str | os.PathLike
) -> tuple[EmbeddingIndex, list[str]]:
    """Writes the index of videos, cut into clips of config.data.num_frames seconds.

    Returns:
      the index; and why videos that are not in it could not be read, a line each.
    """
    failed: list[str] = []

    def make_rows(video: pathlib.Path) -> Rows:
        try:
            return read_rows(video)
        except InputError as error:
            failed.append(first_line(error))
            return []

    def read_rows(video: pathlib.Path) -> Rows:
        rows = []
        for frames, waveform, rate, start in read_clips(video, predictor.config.data.num_frames):
            row = {"name": f"{video.stem}, second {start}", "source": os.path.abspath(video)}
            row |= {"place": start, "category": ""}
            rows.append(row | _media_embeds(embed(predictor, record_of(frames, waveform, rate))))
        return rows

    sources = {
        (os.path.abspath(video), 0): lambda video=video: make_rows(video) for video in videos
    }
    changed = {source: os.stat(source).st_mtime for source, _ in sources}
    return _build(predictor, sources, {}, changed, path, "video", failed), failed


def _media_embeds(found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{m}_embed": found[f"{m}_embed"] for m in MEDIA if f"{m}_embed" in found}


def _build(
    predictor: Predictor,
    sources: Mapping[tuple[str, int], Callable[[], Rows]],
    facts: Mapping[str, Any],
    noted: Mapping[str, Any],
    path: str | os.PathLike,
    unit: str,
    failed: Sequence[str] = (),
) -> EmbeddingIndex:
    """The index of all sources, in their order.

    Args:
      sources: (file or "", number of a record or 0) -> what makes its rows.
      facts: of the index; they must be unchanged for an earlier run's rows to count.
      noted: file or "" -> what must be unchanged for its rows to count.
      failed: to which the sources add a line for what they cannot read.
    """
    path = pathlib.Path(path).expanduser()
    part = path.with_name(f"{path.stem}.part.npz")
    facts = {
        "weights": weights_checksum(predictor),
        "window": predictor.config.data.num_frames,
        "checkpoint": str(predictor.checkpoint.directory),
        **facts,
    }
    found = _read_part(part, facts, noted)
    if found:
        print(f"{part}: resuming after {len(found)} of {len(sources)} {unit}s")
    missing = [key for key in sources if key not in found]

    def save() -> None:
        rows = [row for each in found.values() for row in each]
        if rows:
            EmbeddingIndex.from_rows(rows, {**facts, NOTED: noted}).save(part)

    saved, is_whole = time.monotonic(), False
    try:
        for key in tracked(missing, "index", len(missing), unit):
            found[key] = sources[key]()
            if time.monotonic() - saved > SAVE_SECONDS:
                save()
                saved = time.monotonic()
        is_whole = True
    finally:
        if not is_whole:
            save()
    rows = [row for key in sources for row in found[key]]
    if not rows:
        raise InputError("\n  ".join(["nothing to index: no clip was found", *failed]))
    index = EmbeddingIndex.from_rows(rows, facts)
    remove_graphs(path)
    index.save(path)
    part.unlink(missing_ok=True)
    return index


def _read_part(
    part: pathlib.Path, facts: Mapping[str, Any], noted: Mapping[str, Any]
) -> dict[tuple[str, int], Rows]:
    """The rows that an interrupted run with the same facts left of unchanged sources."""
    if not part.is_file():
        return {}
    index = EmbeddingIndex.load(part)
    before = {name: value for name, value in index.facts.items() if name != NOTED}
    if before != json.loads(json.dumps(facts)):
        return {}
    now, then = json.loads(json.dumps(noted)), index.facts.get(NOTED, {})
    kept = {source for source in now if then.get(source) == now[source]}
    found: dict[tuple[str, int], Rows] = {}
    for i in range(len(index)):
        row = {name: column[i] for name, column in index.columns.items()}
        source = str(row["source"])
        if source in kept:
            found.setdefault((source, 0 if source else int(row["place"])), []).append(row)
    return found
