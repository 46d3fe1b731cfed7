"""VCT's 384 px variant of S4 and MS3, made from AVSBench-semantic; wavs made from videos.

Every file is written whole or not at all, and existing files are kept, so a killed run is resumed.

Source: VCT (repository spyflying/VCT_AVS), generate_data_384. Departure: a row without a partner,
or whose partner lacks a file, is reported; VCT leaves it out.
"""

import concurrent.futures
import dataclasses
import io
import os
import pathlib
import wave
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image

from avs_jax.data import audio
from avs_jax.data.avsbench_csv import Row, read_rows
from avs_jax.data.avsbench_folders import AVSS, Layout, Setting
from avs_jax.data.input_files import read_image
from avs_jax.data.video import probe, read_windows
from avs_jax.files import write_atomically
from avs_jax.progress import tracked
from avs_jax.spec import SAMPLE_RATE, InputError

SIDE = 384  # px
SIDE_OF_SCORES = 224  # px, of the masks outside train


@dataclasses.dataclass
class Result:
    """What a run did: files made, files kept from earlier runs, and what is wrong, as lines."""

    made: int = 0
    kept: int = 0
    problems: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Job:
    """One file to make; `convert` gives its bytes from those of the source's path."""

    source: pathlib.Path
    target: pathlib.Path
    convert: Callable[[pathlib.Path], bytes]


def resize_clips(
    setting: Setting, root: pathlib.Path, source_root: pathlib.Path, subset: str
) -> Result:
    """Makes the layout vct384 below `root` from AVSBench-semantic.

    Args:
      setting, root: S4 or MS3, and the folder of its csv.
      source_root: folder of AVSBench-semantic's csv.
      subset: whose clips are those of the setting: v1s or v1m; joined on vid.
    """
    rows, problems = read_rows(setting, root)
    partners, more = _find_partners(source_root, subset)
    problems += more
    jobs = []
    for row in rows:
        if row.name not in partners:
            problems.append(f"{source_root / AVSS.csv}: no {subset} clip with vid {row.name}")
            continue
        jobs += _clip_jobs(row, root, setting.layout("vct384"), partners[row.name], source_root)
    result = _run(jobs, "resizing")
    result.problems = problems + result.problems
    return result


def _find_partners(root: pathlib.Path, subset: str) -> tuple[dict[str, Row], list[str]]:
    """vid -> clip of the subset, and the vids that several have."""
    partners, problems = {}, []
    for row in read_rows(AVSS, root)[0]:
        if row.subset != subset:
            continue
        vid = row.columns.get("vid", "")
        if vid in partners:
            problems.append(f"{root / AVSS.csv}: vid {vid} of {row.name} is listed twice")
        partners.setdefault(vid, row)
    return partners, problems


def _clip_jobs(
    row: Row, root: pathlib.Path, layout: Layout, partner: Row, source_root: pathlib.Path
) -> Iterator[Job]:
    """The files of one clip; train, val and test differ in the masks' size."""
    original = AVSS.layout("original")
    side = SIDE if row.split == "train" else SIDE_OF_SCORES
    for t in range(row.num_frames):
        frame = partner.path(source_root, original.frames[row.split], t)
        yield Job(frame, row.path(root, layout.frames[row.split], t), resize_frame)
        if t in row.with_mask:
            mask = partner.path(source_root, AVSS.colored_masks, t)
            target = row.path(root, layout.masks[row.split], t)
            yield Job(mask, target, lambda path: resize_mask(path, side))
        colors = partner.path(source_root, original.pre_masks[0][row.split], t)
        if colors.parent.is_dir():
            target = row.path(root, layout.pre_masks[0][row.split], t)
            yield Job(colors, target, resize_colors)


def resize_frame(path: pathlib.Path) -> bytes:
    """A frame squashed to 384 px, bilinear, as PNG."""
    frame = read_image(path)[1].convert("RGB")
    return _encode_png(frame.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def resize_mask(path: pathlib.Path, side: int) -> bytes:
    """Where a colored mask is not black as gray: 255, else 0; nearest, as PNG."""
    gray = np.asarray(read_image(path)[1].convert("L"))
    mask = Image.fromarray((gray > 0).astype(np.uint8) * 255)
    return _encode_png(mask.resize((side, side), Image.Resampling.NEAREST))


def resize_colors(path: pathlib.Path) -> bytes:
    """A color mask at 384 px, nearest; a palette stays."""
    return _encode_png(read_image(path)[1].resize((SIDE, SIDE), Image.Resampling.NEAREST))


def _encode_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def extract_wavs(setting: Setting, root: pathlib.Path) -> Result:
    """Makes the wavs that a setting lacks from its videos: 16 kHz, mono, the clip's length.

    Clips that have neither are left to `check`, which lists them.
    """
    jobs = []
    for row in read_rows(setting, root)[0]:
        video, wav = row.path(root, setting.video), row.path(root, setting.layouts[0].wav)
        if wav.exists() or video.exists():
            jobs.append(Job(video, wav, lambda path, row=row: extract_wav(path, row.num_frames)))
    return _run(jobs, "extracting sound")


def extract_wav(path: pathlib.Path, seconds: int) -> bytes:
    """The first `seconds` of a video's sound as a WAV file, int16, 16 kHz, mono."""
    _, waveform, _ = next(read_windows(path, seconds))
    samples = audio.resample(audio.to_mono(waveform), probe(path).sample_rate)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(np.clip(np.round(samples * 32768), -32768, 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def _run(jobs: Sequence[Job], title: str) -> Result:
    """Makes the files that do not exist, in threads, with progress."""
    todo = [job for job in jobs if not job.target.exists()]
    result = Result(kept=len(jobs) - len(todo))
    if not todo:
        return result
    with concurrent.futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for problem in tracked(pool.map(_make, todo), title, len(todo), "file"):
            if problem:
                result.problems.append(problem)
            else:
                result.made += 1
    return result


def _make(job: Job) -> str:
    """Makes one file; returns what went wrong."""
    try:
        write_atomically(job.target, job.convert(job.source))
    except InputError as error:
        return str(error)
    return ""
