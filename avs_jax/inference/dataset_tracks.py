"""The motion tracks of a dataset's clips: one file per clip (data/motion_track.py)."""

import functools
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from avs_jax.data.flow_files import FlowClip, FlowError, frame_files, write_array
from avs_jax.data.motion_track import (
    TRACK_FILE,
    Estimate,
    is_whole_track,
    least_interval,
    track_samples,
)
from avs_jax.data.video import read_timed_frames
from avs_jax.inference.clip_jobs import Outcome, Progress, read_ahead


def make_tracks(
    clips: Sequence[FlowClip],
    output: pathlib.Path,
    estimate: Estimate,
    rate: float,
    batch_size: int,
    say: Callable[[str], None],
    side: int,
    workers: int = 1,
) -> Outcome:
    """Writes the motion tracks that clips do not have.

    Args:
      output: the dataset's folder in the root of the tracks.
      estimate: of pairs of frames, `batch_size` at once.
      rate: samples per second.
      say: takes lines of progress.
      side: px that frames are squashed to.
      workers: processes that read videos and call `estimate`; 1: threads of this one do.
    """
    failed: list[str] = []
    progress, written, kept = Progress(len(clips), say), 0, 0
    read = functools.partial(_make_track, output, estimate, rate, batch_size, side)
    jobs = read_ahead(read, clips, min(workers, len(clips)))
    progress.start()
    for number, (clip, result) in enumerate(jobs, start=1):
        try:
            track = result()
        # Decoders answer damaged files with many kinds of exceptions; none ends the run.
        except Exception as error:
            failed.append(f"{clip.folder}: {str(error) or type(error).__name__}")
        else:
            if track is None:
                kept += 1
            else:
                try:
                    write_array(output / clip.folder / TRACK_FILE, track)
                    written += 1
                except FlowError as error:
                    failed.append(f"{clip.folder}: {error}")
        progress.show(number, written, kept)
    progress.show(len(clips), written, kept, is_last=True)
    return Outcome(written, kept, failed)


def _make_track(
    output: pathlib.Path,
    estimate: Estimate,
    rate: float,
    batch_size: int,
    side: int,
    clip: FlowClip,
) -> np.ndarray | None:
    """The track of a clip, float16 [N, 24, 24, C]; None where the folder has it."""
    count = round(len(frame_files(clip.frames)) * rate)
    if is_whole_track(output / clip.folder / TRACK_FILE, count):
        return None
    frames = read_timed_frames(clip.video, least_interval(rate))
    return np.stack([*track_samples(frames, estimate, rate, count, side, batch_size)])
