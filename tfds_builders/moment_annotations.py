"""Annotation files of queries on videos: the lines that can be one, and what is wrong with others.

The annotation format is QVHighlights' (JSON Lines; repository jayleicn/moment_detr), with TVSum's
`label` and `domain` (repository TencentARC/UMT) and one key of our own, `clip_seconds`.
"""

import dataclasses
import json
import math
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from avs_jax.data.input_files import read_text
from avs_jax.spec import InputError, first_line

MAX_SECONDS = 24 * 3600  # of a video
MAX_CLIPS = 1_000_000


@dataclasses.dataclass(frozen=True)
class Annotation:
    """One line of an annotation file."""

    qid: str
    vid: str
    query: str
    duration: float
    clip_seconds: float
    windows: tuple[tuple[float, float], ...] = ()
    saliency_clips: tuple[int, ...] = ()
    saliency: tuple[tuple[float, ...], ...] = ()
    ratings: tuple[tuple[float, ...], ...] = ()
    domain: str = ""


def read_annotations(
    path: pathlib.Path, clip_seconds: float, domain: str = ""
) -> tuple[list[Annotation], list[str]]:
    """The lines of an annotation file that can be queries, and what is wrong with the others.

    Args:
      path: of the JSON Lines file.
      clip_seconds: where a line does not say.
      domain: leaves out the lines of others; "" none.
    """
    annotations, problems, seen = [], [], set()
    try:
        text = read_text(path)
    except InputError as error:
        return [], [str(error)]
    # A line ends at "\n" alone: texts may hold the other characters that splitlines() splits at.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            annotation = parse_annotation(line, clip_seconds)
            if annotation.qid in seen:
                raise ValueError(f"qid {annotation.qid} is listed twice")
        except ValueError as error:
            problems.append(f"{path}, line {number}: {error}")
            continue
        seen.add(annotation.qid)
        if not domain or annotation.domain == domain:
            annotations.append(annotation)
    return annotations, problems


def read_splits(
    files: Mapping[str, pathlib.Path],
    clip_seconds: float,
    domain: str = "",
    has_text_per_qid: bool = True,
) -> tuple[dict[str, list[Annotation]], list[str]]:
    """`read_annotations` of every split.

    Args:
      has_text_per_qid: word features are stored by qid. A qid with another text in another split is
        then a problem: it would get the words of the first.
    """
    splits: dict[str, list[Annotation]] = {}
    problems: list[str] = []
    texts: dict[str, str] = {}
    for split, path in files.items():
        annotations, wrong = read_annotations(path, clip_seconds, domain)
        problems += wrong
        splits[split] = []
        for annotation in annotations:
            text = texts.setdefault(annotation.qid, annotation.query)
            if text == annotation.query or not has_text_per_qid:
                splits[split].append(annotation)
            else:
                problems.append(f"{path}: qid {annotation.qid} is {text!r} in another split")
    return splits, problems


def parse_annotation(line: str, clip_seconds: float) -> Annotation:
    """One line of an annotation file.

    Raises:
      ValueError: it cannot be one; says why.
    """
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({first_line(error)})") from error
    if not isinstance(values, dict):
        raise ValueError(f"a {type(values).__name__}, expected an object")
    missing = [name for name in ("qid", "query", "vid", "duration") if name not in values]
    if missing:
        raise ValueError(f"lacks {', '.join(missing)}")
    for name in ("qid", "vid"):
        if isinstance(values[name], bool) or not isinstance(values[name], (int, str)):
            raise ValueError(f"{name} is {values[name]!r}, expected text or a whole number")
        if not _is_file_name(str(values[name])):
            raise ValueError(f"{name} {values[name]!r} cannot be a file's name")
    qid, vid, query = str(values["qid"]), str(values["vid"]), values["query"]
    domain = str(values.get("domain") or "")
    if not isinstance(query, str) or not query.strip():
        raise ValueError(f"query of qid {qid} is {query!r}, expected text")
    if not _is_encodable(query) or not _is_encodable(domain):
        raise ValueError(f"query or domain of qid {qid} holds half a character (a lone surrogate)")
    duration = values["duration"]
    clip_seconds = values.get("clip_seconds", clip_seconds)
    for name, value in (("duration", duration), ("clip_seconds", clip_seconds)):
        if not _is_number(value) or not 0 < value < MAX_SECONDS:
            wanted = f"seconds above 0 and below {MAX_SECONDS}"
            raise ValueError(f"{name} of qid {qid} is {value!r}, expected {wanted}")
    if duration / clip_seconds > MAX_CLIPS:
        raise ValueError(f"qid {qid} has {duration / clip_seconds:.3g} clips, at most {MAX_CLIPS}")
    windows = _number_rows(values, "relevant_windows", qid)
    for window in windows:
        if len(window) != 2 or not 0 <= window[0] < window[1] <= duration + clip_seconds:
            raise ValueError(f"window {list(window)} of qid {qid} is not within 0..{duration:g} s")
    saliency = _number_rows(values, "saliency_scores", qid)
    clips = values.get("relevant_clip_ids") or [] if saliency else []
    last = math.ceil(duration / clip_seconds) - 1
    if not isinstance(clips, list) or any(
        isinstance(clip, bool) or not isinstance(clip, int) or not 0 <= clip <= last
        for clip in clips
    ):
        raise ValueError(f"relevant_clip_ids {clips} of qid {qid}, expected 0..{last}")
    if len(clips) != len(saliency) or len(set(clips)) != len(clips):
        raise ValueError(f"{len(saliency)} saliency_scores for the clips {clips} of qid {qid}")
    return Annotation(
        qid=qid,
        vid=vid,
        query=query,
        duration=float(duration),
        clip_seconds=float(clip_seconds),
        windows=windows,
        saliency_clips=tuple(clips),
        saliency=saliency,
        ratings=_number_rows(values, "label", qid),
        domain=domain,
    )


def _number_rows(values: Mapping[str, Any], name: str, qid: str) -> tuple[tuple[float, ...], ...]:
    """A list of equally long lists of numbers; () where it is absent or null."""
    rows = values.get(name) or []
    is_table = isinstance(rows, list) and all(isinstance(row, list) for row in rows)
    if not is_table or not all(_is_number(value) for row in rows for value in row):
        raise ValueError(f"{name} of qid {qid} is not a list of lists of finite numbers")
    if len({len(row) for row in rows}) > 1:
        raise ValueError(f"{name} of qid {qid} has rows of different lengths")
    return tuple(map(tuple, rows))


def _is_file_name(name: str) -> bool:
    """Whether a name can be one level of a path."""
    has_separator = bool(set(name) & set("/\\"))
    return name not in ("", ".", "..") and name.isprintable() and not has_separator


def _is_encodable(text: str) -> bool:
    """Whether a text can be stored; JSON can escape half of a surrogate pair."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and abs(value) <= sys.float_info.max
