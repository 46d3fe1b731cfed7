"""Jobs of the page on a task without a model: conditions, limits, errors, canceling."""

import json
import threading
import time
import types
import zipfile

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from avs_jax.app import jobs
from avs_jax.data.video import read_frames, read_windows
from avs_jax.data.video_output import write_overlay
from avs_jax.files import atomic_folder
from avs_jax.spec import InputError
from tests.video_files import steady, write

WINDOW = 2  # seconds
PATIENCE = 20


def predict_loudness(predictor, path, output, text=()):
    """Reports the loudness of every second as the area."""
    seconds, frames = [], []
    with atomic_folder(output) as folder:
        for images, waveform, start in read_windows(path, WINDOW):
            predictor.step()
            for k, sound in enumerate(np.split(waveform[:, 0].astype(float), len(images))):
                seconds.append({"second": start + k, "area": sound.std(), "score": 0.5})
            frames.extend(images)
        write_overlay(folder / "overlay.mp4", frames, 1, path)
        (folder / "results.json").write_text(json.dumps({"seconds": seconds}))
    return [f"{len(text)} texts", f"{output}: results.json"]


def predict_frames(predictor, path, output, points=None):
    """Writes a folder of overlays, as task `track` does."""
    found = json.loads(points.read_text())
    with atomic_folder(output) as folder:
        (folder / "overlay").mkdir()
        for number, frame in enumerate(read_frames(path)):
            predictor.step()
            Image.fromarray(frame).save(folder / "overlay" / f"{number:05d}.jpg")
        (folder / "results.json").write_text("{}")
    return [str(found)]


class FakePredictor(jobs.WatchedPredictor):
    def __init__(self, task):
        self.task = task
        self.config = ConfigDict({"data": {"num_frames": WINDOW} if task.rows.fields else {}})


def make_runner(predict_video=predict_loudness, flags=(), fields=("log_mel",), max_seconds=10):
    rows = types.SimpleNamespace(fields=dict.fromkeys(fields))
    task = types.SimpleNamespace(
        name="fake", predict_video=predict_video, predict_flags=flags, rows=rows, model=None
    )
    return jobs.Runner(FakePredictor(task), max_seconds, {})


def run(runner, folder, **inputs):
    """The job of some inputs, ended."""
    folder.mkdir()
    job = jobs.Job(runner, jobs.Inputs(**inputs), folder)
    assert job.wait(PATIENCE)
    return job


def loudness(result, condition):
    with zipfile.ZipFile(result.archive) as archive:
        results = json.loads(archive.read(f"{condition}/results.json"))
    return [row["area"] for row in results["seconds"]]


def test_every_condition_has_its_sound(tmp_path):
    loud = write(tmp_path / "loud.mp4", steady(3), rate=16_000, channels=1)
    short = write(tmp_path / "short.mp4", steady(1), rate=16_000, channels=1)
    job = run(make_runner(), tmp_path / "job", video=loud, silence=True, another=short)
    result = job.result
    assert list(result.videos) == ["own sound", "silence", "another sound"] and not job.error
    assert all(path.is_file() for path in result.videos.values())
    assert result.lines == [f"{condition}: 0 texts" for condition in result.videos]
    own = loudness(result, "own_sound")
    assert len(own) == 3 and min(own) > 500
    assert max(loudness(result, "silence")) < 1
    first, *rest = loudness(result, "another_sound")
    assert first > 500 and max(rest) < 100  # silence follows the shorter sound
    assert result.chart.ndim == 3 and not result.maps
    assert job.progress.startswith("100%")
    job.discard()
    assert not (tmp_path / "job").exists()


def test_a_video_without_sound_takes_a_given_one(tmp_path):
    silent = write(tmp_path / "silent.mp4", steady(2), rate=None)
    sound = write(tmp_path / "loud.mp4", steady(2), rate=16_000, channels=1)
    job = run(make_runner(), tmp_path / "without", video=silent)
    assert job.error.startswith("error: silent.mp4: no sound") and job.result is None
    assert not (tmp_path / "without").exists()
    job = run(make_runner(), tmp_path / "with", video=silent, sound=sound)
    assert list(job.result.videos) == ["given sound"]
    assert min(loudness(job.result, "given_sound")) > 500


def test_frames_become_a_video(tmp_path):
    silent = write(tmp_path / "silent.mp4", steady(2), rate=None)
    runner = make_runner(predict_frames, flags=("points", "boxes"), fields=())
    job = run(runner, tmp_path / "job", video=silent, points=[(3, 4)])
    assert job.result.lines == ["own sound: {'object': {'0': [[3, 4, 1]]}}"]
    count = len(list(read_frames(silent)))
    assert len(list(read_frames(job.result.videos["own sound"]))) == count
    assert job.result.chart is None


@pytest.mark.parametrize(
    "setting, inputs, reason",
    [
        ({"max_seconds": 1}, {}, "lasts 2 s; this page takes up to 1 s"),
        ({"flags": ("points",)}, {}, "click on the object"),
    ],
)
def test_refused_inputs(tmp_path, setting, inputs, reason):
    video = write(tmp_path / "in.mp4", steady(2), rate=16_000, channels=1)
    job = run(make_runner(**setting), tmp_path / "job", video=video, **inputs)
    assert reason in job.error and not (tmp_path / "job").exists()


def test_refused_tasks():
    with pytest.raises(InputError, match="needs --masks"):
        make_runner(flags=("masks",))
    with pytest.raises(InputError, match="does not predict on videos"):
        make_runner(predict_video=None)


def test_one_job_at_a_time_until_it_is_canceled(tmp_path):
    video = write(tmp_path / "in.mp4", steady(2), rate=16_000, channels=1)
    has_begun, may_go_on = threading.Event(), threading.Event()

    def predict_video(predictor, path, output):
        predictor.step()
        has_begun.set()
        assert may_go_on.wait(PATIENCE)
        predictor.step()  # raises once the job is canceled
        return predict_loudness(predictor, path, output)

    runner = make_runner(predict_video)
    places = [tmp_path / "first", tmp_path / "second"]
    for place in places:
        place.mkdir()
    first = jobs.Job(runner, jobs.Inputs(video), places[0])
    assert has_begun.wait(PATIENCE)
    second = jobs.Job(runner, jobs.Inputs(video), places[1])
    assert not second.wait(0.2) and "waiting" in second.progress
    first.discard()
    may_go_on.set()
    assert first.wait(PATIENCE) and first.error == "canceled" and first.result is None
    assert second.wait(PATIENCE) and second.result is not None
    assert not places[0].exists() and places[1].exists()


def test_closing_cancels_the_running_job(tmp_path):
    video = write(tmp_path / "in.mp4", steady(2), rate=16_000, channels=1)
    has_begun = threading.Event()

    def predict_video(predictor, path, output):
        while True:
            predictor.step()
            has_begun.set()
            time.sleep(0.01)

    runner = make_runner(predict_video)
    (tmp_path / "job").mkdir()
    job = jobs.Job(runner, jobs.Inputs(video), tmp_path / "job")
    assert has_begun.wait(PATIENCE)
    runner.close()
    assert job.wait(PATIENCE) and job.error == "canceled"


def test_maps_are_kept_without_padding():
    class Host(jobs.Predictor):
        def outputs(self, inputs):
            maps = np.arange(2 * 3 * 3).reshape(1, 2, 3, 3)
            return {"motion_weight": maps, "pred_logits": maps, "gate": maps[:, :, 0, 0]}

    class Watched(jobs.WatchedPredictor, Host):
        def __init__(self):
            pass

    predictor = Watched()
    predictor.begin(lambda step: None)
    predictor.outputs({"valid": np.array([[True, False]])})
    (kept,) = predictor.maps.pop("motion_weight")
    assert kept.shape == (1, 3, 3) and kept.max() == 8 and not predictor.maps


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    job = run(make_runner(), tmp_path / "job", video=tmp_path / "text.mp4")
    assert job.error.startswith("error: text.mp4: not a video")
