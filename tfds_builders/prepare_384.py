"""VCT's 384 px variant of S4 and MS3, made from AVSBench-semantic; wavs made from videos.

Every file is written under another name first and then moved, so what is there is whole, and a run
that was killed goes on where it stopped.

Source: VCT (repository spyflying/VCT_AVS), generate_data_384. Departure: a row that has no partner,
or whose partner lacks a file, is reported; there it is left out.
"""

import concurrent.futures
import dataclasses
import io
import os
import pathlib
import wave
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tqdm
from PIL import Image

from avs_jax.data import audio
from avs_jax.data.video import VideoError, probe, read_windows
from avs_jax.spec import SAMPLE_RATE
from tfds_builders.avsbench import AVSBenchBuilder, Layout, Row
from tfds_builders.avsbench_semantic import avsbench_semantic_dataset_builder as semantic

SIDE = 384  # px
SIDE_OF_SCORES = 224  # px, of the masks outside train
_VIDEOS = {  # template by the wav's
    "s4_data/audio_wav/{split}/{category}/{name}.wav": (
        "s4_data/raw_videos/{split}/{category}/{name}.mp4"
    ),
    "ms3_data/audio_wav/{split}/{name}.wav": "ms3_data/raw_videos/{name}.mp4",
}


@dataclasses.dataclass
class Result:
    """What a run did: files made, files that were there, and what is wrong, as lines."""

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
    builder: type[AVSBenchBuilder],
    root: pathlib.Path,
    source_builder: type[AVSBenchBuilder],
    source_root: pathlib.Path,
    subset: str,
) -> Result:
    """Makes the layout vct384 below `root` from AVSBench-semantic.

    Args:
      builder, root: of S4 or MS3, and the folder of its csv.
      source_builder, source_root: of AVSBench-semantic.
      subset: whose clips are those of the setting: v1s or v1m; joined on vid.
    """
    (layout,) = [x for x in builder.BUILDER_CONFIGS if x.name == "vct384"]
    rows, problems = builder.read_rows(root)
    partners, more = _partners(source_builder, source_root, subset)
    problems += more
    jobs = []
    for row in rows:
        if row.name not in partners:
            message = f"no {subset} clip with vid {row.name}"
            problems.append(f"{source_root / source_builder.CSV}: {message}")
            continue
        jobs += _clip_jobs(row, root, layout, partners[row.name], source_root)
    result = _run(jobs, "Resizing")
    result.problems = problems + result.problems
    return result


def _partners(
    builder: type[AVSBenchBuilder], root: pathlib.Path, subset: str
) -> tuple[dict[str, Row], list[str]]:
    """vid -> clip of the subset, and the vids that several have."""
    rows = {row.name: row for row in builder.read_rows(root)[0] if row.subset == subset}
    partners, problems = {}, []
    for line, values in builder.csv_lines(root):
        row, vid = rows.get(values["name"]), values.get("vid", "")
        if row is None:
            continue
        if vid in partners:
            problems.append(f"{root / builder.CSV}, line {line}: vid {vid} is listed twice")
        partners.setdefault(vid, row)
    return partners, problems


def _clip_jobs(
    row: Row, root: pathlib.Path, layout: Layout, partner: Row, source_root: pathlib.Path
) -> Iterator[Job]:
    """The files of one clip; train, val and test differ in the masks' size."""
    original = semantic.ORIGINAL
    side = SIDE if row.split == "train" else SIDE_OF_SCORES
    for t in range(row.num_frames):
        frame = partner.path(source_root, original.frames[row.split], t)
        yield Job(frame, row.path(root, layout.frames[row.split], t), resize_frame)
        if t in row.with_mask:
            mask = partner.path(source_root, semantic.COLOURED_MASKS, t)
            target = row.path(root, layout.masks[row.split], t)
            yield Job(mask, target, lambda path: resize_mask(path, side))
        colours = partner.path(source_root, original.pre_masks[0][row.split], t)
        if colours.parent.is_dir():
            target = row.path(root, layout.pre_masks[0][row.split], t)
            yield Job(colours, target, resize_colours)


def resize_frame(path: pathlib.Path) -> bytes:
    """A frame squashed to 384 px, bilinear, as PNG."""
    with Image.open(path) as image:
        return _png(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def resize_mask(path: pathlib.Path, side: int) -> bytes:
    """Where a coloured mask is not black as grey: 255, else 0; nearest, as PNG."""
    with Image.open(path) as image:
        grey = np.asarray(image.convert("L"))
    mask = Image.fromarray((grey > 0).astype(np.uint8) * 255)
    return _png(mask.resize((side, side), Image.Resampling.NEAREST))


def resize_colours(path: pathlib.Path) -> bytes:
    """A colour mask at 384 px, nearest; a palette stays."""
    with Image.open(path) as image:
        return _png(image.resize((SIDE, SIDE), Image.Resampling.NEAREST))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def extract_wavs(builder: type[AVSBenchBuilder], root: pathlib.Path) -> Result:
    """Makes the wavs that a setting lacks from its videos: 16 kHz, mono, the clip's length.

    Clips that have neither are left to `check`, which lists them.
    """
    layout = builder.BUILDER_CONFIGS[0]
    jobs, rows = [], builder.read_rows(root)[0]
    for row in rows:
        video, wav = row.path(root, _VIDEOS[layout.wav]), row.path(root, layout.wav)
        if wav.exists() or video.exists():
            jobs.append(Job(video, wav, lambda path, row=row: extract_wav(path, row.num_frames)))
    return _run(jobs, "Extracting sound")


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
    """Makes the files that are not there, in threads, with progress."""
    todo = [job for job in jobs if not job.target.exists()]
    result = Result(kept=len(jobs) - len(todo))
    if not todo:
        return result
    with concurrent.futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for problem in tqdm.tqdm(pool.map(_make, todo), title, len(todo), unit="file"):
            if problem:
                result.problems.append(problem)
            else:
                result.made += 1
    return result


def _make(job: Job) -> str:
    """Makes one file; returns what went wrong."""
    try:
        content = job.convert(job.source)
    except FileNotFoundError:
        return f"{job.source}: missing"
    except (OSError, ValueError, SyntaxError, VideoError) as error:
        return f"{job.source}: {error}"
    job.target.parent.mkdir(parents=True, exist_ok=True)
    temporary = job.target.with_name(f".{job.target.name}.part")
    temporary.write_bytes(content)
    os.replace(temporary, job.target)
    return ""
