"""A job of the page: a video and its inputs -> overlays, maps, a chart and a file to download.

A job predicts with the video's own sound, or with that of another file. To compare, it predicts
again with silence and with a third sound. It runs in its own thread, reports its progress before
every window, and stops there when it is canceled.
"""

import dataclasses
import functools
import itertools
import json
import pathlib
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from avs_jax.data.container import VideoError
from avs_jax.data.video import frame_span, probe, read_windows
from avs_jax.data.video_output import read_sound, write_overlay, write_with_sound
from avs_jax.inference.predictor import Predictor
from avs_jax.results.strip_figure import map_strips, second_chart
from avs_jax.spec import FRAME_OFFSET_SECONDS, SAMPLE_RATE, InputError, first_line

OWN, GIVEN, SILENCE, ANOTHER = "own sound", "given sound", "silence", "another sound"
FLAGS = ("text", "points", "flow_weights")  # of predict, that a page or its program gives
SOUND_FIELDS = {"log_mel", "audio"}  # input fields made from the sound
CLOSING_SECONDS = 10  # a running window gets to end; a compilation takes longer
MAX_MAPS = 20  # seconds whose maps are shown

Watch = Callable[[float, str], None]  # (fraction done, what is being done); raises to stop


class Canceled(Exception):
    """The job was canceled."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What the user gave.

    Attributes:
      sound: file whose sound replaces the video's.
      silence: whether to predict with silence too.
      another: file with whose sound to predict too.
      text: expressions, queries or classes.
      points: (x, y) in px of the first frame: the object to follow.
    """

    video: pathlib.Path
    sound: pathlib.Path | None = None
    silence: bool = False
    another: pathlib.Path | None = None
    text: Sequence[str] = ()
    points: Sequence[tuple[int, int]] = ()


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a job, in its folder.

    Attributes:
      videos: condition -> overlay, or best cut; the own or given sound's first.
      maps: (uint8 [height, width, 3], caption), of the first condition.
      chart: uint8 [height, width, 3], or None.
      archive: zip with predict's output for every condition.
      lines: what predict prints.
    """

    videos: Mapping[str, pathlib.Path]
    maps: Sequence[tuple[np.ndarray, str]]
    chart: np.ndarray | None
    archive: pathlib.Path
    lines: Sequence[str]


class WatchedPredictor(Predictor):
    """A predictor that calls `watch` before every step, and keeps the model's maps.

    Attributes:
      watch: takes how many steps came before; may raise to stop.
      maps: output -> one float32 [t, h, w] per window; both since `begin`.
    """

    watch: Callable[[int], None]
    maps: dict[str, list[np.ndarray]]

    def begin(self, watch: Callable[[int], None]) -> None:
        """Starts a prediction."""
        self.watch, self.maps, self._num_steps = watch, {}, 0

    def step(self) -> None:
        self.watch(self._num_steps)
        self._num_steps += 1

    def outputs(self, inputs: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        outputs = super().outputs(inputs)
        for name, value in outputs.items():
            is_map = value.ndim == 4 and not name.startswith("pred_")
            if is_map and "valid" in inputs:
                exists = np.asarray(inputs["valid"][0])
                self.maps.setdefault(name, []).append(np.asarray(value[0], np.float32)[exists])
        return outputs


class Runner:
    """Runs jobs on one checkpoint, one at a time.

    Attributes:
      max_seconds: longer videos are refused.
    """

    def __init__(self, predictor: WatchedPredictor, max_seconds: int, flags: Mapping[str, Any]):
        """`flags` of predict go into every job.

        Raises:
          InputError: the task does not predict on videos, or needs what the page cannot give.
        """
        task = predictor.task
        if task.predict_video is None:
            raise InputError(f"task {task.name!r} does not predict on videos")
        if task.predict_flags and not set(FLAGS) & set(task.predict_flags):
            needed = ", ".join(f"--{name}" for name in task.predict_flags)
            raise InputError(f"task {task.name!r} needs {needed}: use avs-jax predict")
        for name in flags:
            if name not in task.predict_flags:
                raise InputError(f"--{name} is not read by task {task.name!r}")
        self.predictor, self.max_seconds, self._flags = predictor, max_seconds, dict(flags)
        self._turn, self._is_closing = threading.Lock(), threading.Event()

    @property
    def hears(self) -> bool:
        """Whether the model reads the sound."""
        task = self.predictor.task
        reads = task.model.reads() if hasattr(task.model, "reads") else SOUND_FIELDS
        return bool(SOUND_FIELDS & set(task.rows.fields) & set(reads))

    def takes(self, flag: str) -> bool:
        """Whether the task reads a flag of predict."""
        return flag in self.predictor.task.predict_flags

    def run(self, inputs: Inputs, folder: pathlib.Path, watch: Watch) -> Result:
        """Predicts under every condition, after the jobs that came before.

        Args:
          folder: of the job; empty.

        Raises:
          Canceled: the program ends. InputError, OSError: an input is unusable. Whatever `watch`
            raises.
        """
        watch(0, "waiting for the job before this one")
        with self._turn:
            watch(0, "reading the video")
            num_steps, videos = self._check(inputs), self._make_videos(inputs, folder)
            flags = self._given_flags(inputs, folder)
            places = {name: folder / name.replace(" ", "_") for name in videos}
            shown, maps, lines = {}, {}, []
            for i, (condition, video) in enumerate(videos.items()):
                share = 1 / len(videos)
                self.predictor.begin(
                    functools.partial(self._report, watch, condition, i * share, share / num_steps)
                )
                said = self.predictor.task.predict_video(
                    self.predictor, video, places[condition], **flags
                )
                lines += [f"{condition}: {line}" for line in said if str(folder) not in line]
                maps = maps or {k: np.concatenate(v) for k, v in self.predictor.maps.items()}
                if overlay := _find_video(places[condition], video):
                    shown[condition] = overlay
            watch(1, "drawing")
            first = next(iter(videos.values()))
            return Result(
                videos=shown,
                maps=_draw_maps(first, maps, self.predictor.config.data),
                chart=_draw_chart(places, first),
                archive=_pack(places.values(), folder / "results.zip"),
                lines=lines,
            )

    def close(self) -> None:
        """Cancels all jobs and waits for the running one, but not for a compilation."""
        self._is_closing.set()
        self._turn.acquire(timeout=CLOSING_SECONDS)

    def _report(self, watch: Watch, condition: str, done: float, share: float, step: int) -> None:
        """Reports a step of a condition, after the fraction `done`; each step takes `share`."""
        if self._is_closing.is_set():
            raise Canceled
        is_first = not done and not step
        note = " (compiles for a minute or more, once per frame size)" if is_first else ""
        watch(min(done + step * share, 1), f"{condition}, step {step + 1}{note}")

    def _check(self, inputs: Inputs) -> int:
        """The number of windows (or frames, of task `track`) of a video."""
        span = frame_span(inputs.video)
        seconds = span.end - span.start
        if seconds > self.max_seconds:
            raise InputError(
                f"the video lasts {seconds:.0f} s; this page takes up to {self.max_seconds} s "
                "(avs-jax app --max_seconds=N)"
            )
        if self.hears and inputs.sound is None:
            probe(inputs.video)  # needs sound
        if self.takes("points") and not inputs.points:
            raise InputError("click on the object in the first frame")
        per_window = self.predictor.config.data.get("num_frames")
        return span.num_frames if per_window is None else max(1, round(seconds / per_window))

    def _make_videos(self, inputs: Inputs, folder: pathlib.Path) -> dict[str, pathlib.Path]:
        """Condition -> video with its sound."""
        if not self.hears:
            return {OWN: inputs.video}
        sounds = {}
        if inputs.sound is not None:
            sounds[GIVEN] = read_sound(inputs.sound, self.max_seconds)
        if inputs.silence:
            sounds[SILENCE] = np.zeros((1, 1), np.int16), SAMPLE_RATE
        if inputs.another is not None:
            sounds[ANOTHER] = read_sound(inputs.another, self.max_seconds)
        videos = {} if GIVEN in sounds else {OWN: inputs.video}
        for condition, (waveform, sample_rate) in sounds.items():
            videos[condition] = folder / f"{condition.replace(' ', '_')}.video"
            write_with_sound(videos[condition], inputs.video, waveform, sample_rate)
        return videos

    def _given_flags(self, inputs: Inputs, folder: pathlib.Path) -> dict[str, Any]:
        flags = dict(self._flags)
        if self.takes("text"):
            flags["text"] = inputs.text
        if self.takes("points"):
            flags["points"] = folder / "points.json"
            points = [[x, y, 1] for x, y in inputs.points]
            flags["points"].write_text(json.dumps({"object": {"0": points}}))
        return flags


class Job:
    """One job, in its own thread.

    Attributes:
      progress: a line on how far it is.
      result: of the job, once it has ended; None if there is none.
      error: why there is none.
    """

    def __init__(self, runner: Runner, inputs: Inputs, folder: pathlib.Path):
        """Starts. `folder` is empty; it stays until `discard`, or until the job fails."""
        self.progress, self.error = "starting", ""
        self.result: Result | None = None
        self._folder, self._is_canceled = folder, threading.Event()
        self._lock, self._has_ended = threading.Lock(), False
        self._thread = threading.Thread(target=self._work, args=(runner, inputs), daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Waits; returns whether the job has ended."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def cancel(self) -> None:
        """Stops the job before its next step."""
        self._is_canceled.set()

    def discard(self) -> None:
        """Cancels the job and removes its files: now, or when it stops."""
        self.cancel()
        with self._lock:
            if self._has_ended:
                shutil.rmtree(self._folder, ignore_errors=True)

    def _watch(self, fraction: float, what: str) -> None:
        if self._is_canceled.is_set():
            raise Canceled
        self.progress = f"{fraction:.0%} {what}"

    def _work(self, runner: Runner, inputs: Inputs) -> None:
        try:
            self.result = runner.run(inputs, self._folder, self._watch)
        except Canceled:
            self.error = "canceled"
        except VideoError as error:
            self.error = f"error: {pathlib.Path(error.path).name}: {error.reason}"
        except (InputError, OSError) as error:
            self.error = f"error: {first_line(error)}"
        except Exception as error:
            self.error = f"failed: {type(error).__name__}: {first_line(error)}"
            raise  # the terminal shows the traceback
        finally:
            with self._lock:
                self._has_ended = True
                if self.result is None or self._is_canceled.is_set():
                    shutil.rmtree(self._folder, ignore_errors=True)


def _find_video(place: pathlib.Path, source: pathlib.Path) -> pathlib.Path | None:
    """The video of a result: an overlay, the overlays of task `track` as one, or the best cut."""
    if (place / "overlay").is_dir():
        _join_overlays(place, source)
    found = [*sorted(place.glob("**/overlay.mp4")), *sorted(place.glob("best_*.mp4"))]
    return found[0] if found else None


def _join_overlays(place: pathlib.Path, source: pathlib.Path) -> None:
    """Writes overlay/ as overlay.mp4, with the sound of `source` or with silence."""

    def frames():
        for file in sorted((place / "overlay").iterdir()):
            with Image.open(file) as image:
                yield np.asarray(image.convert("RGB"))

    span = frame_span(source)
    try:
        probe(source)
    except VideoError:  # no sound
        silent = place.with_suffix(".video")
        write_with_sound(silent, source, np.zeros((1, 1), np.int16), SAMPLE_RATE)
        source = silent
    fps = span.num_frames / max(span.end - span.start, 1e-3)
    write_overlay(place / "overlay.mp4", frames(), fps, source)


def _draw_maps(
    video: pathlib.Path, maps: Mapping[str, np.ndarray], data: Any
) -> list[tuple[np.ndarray, str]]:
    if not maps:
        return []
    windows = read_windows(video, 1, data.get("frame_offset", FRAME_OFFSET_SECONDS))
    frames = [window[0] for window, _, _ in itertools.islice(windows, MAX_MAPS)]
    return map_strips(frames, maps)


def _draw_chart(places: Mapping[str, pathlib.Path], video: pathlib.Path) -> np.ndarray | None:
    """The task's own chart, or area and score per second under each condition, or None."""
    own = next(iter(places.values())) / "chart.png"
    if own.is_file():
        with Image.open(own) as image:
            return np.asarray(image.convert("RGB"))
    seconds = {}
    for condition, place in places.items():
        results = json.loads((place / "results.json").read_text())
        for part in results.get("expressions", [results]):
            rows = part.get("seconds", [])
            if rows and "area" in rows[0]:
                seconds[f"{condition} {part.get('text', '')}".strip()] = rows
    if not seconds:
        return None
    length = max(map(len, seconds.values()))
    return second_chart(seconds, *read_sound(video, length))


def _pack(places: Iterable[pathlib.Path], path: pathlib.Path) -> pathlib.Path:
    """Writes a zip of folders; not compressed again, as PNG and mp4 are."""
    with zipfile.ZipFile(path, "w") as archive:
        for place in places:
            for file in sorted(place.rglob("*")):
                if file.is_file():
                    archive.write(file, file.relative_to(path.parent))
    return path
