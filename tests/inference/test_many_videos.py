"""Many videos: the files are the state, shards share the work, failures are named."""

import errno
import json
import multiprocessing
import os
import time

import av.error
import pytest

from avs_jax.inference import many_videos
from avs_jax.inference.many_videos import Shard, find_videos, predict_many
from avs_jax.spec import InputError, UsageError


@pytest.fixture
def folder(tmp_path):
    for name in ("b.mp4", "deep/er/a.mp4", "deep/bad.mp4", "deep/note.txt", "c.mp4"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(name)
    return tmp_path


def predict_one(video, output):
    if "bad" in video.name:
        raise InputError(f"{video}: damaged\nsecond line")
    output.mkdir(parents=True)
    (output / "results.json").write_text("{}")


def run(folder, shard="0/1", predict_one=predict_one, **settings):
    videos, said = find_videos(f"{folder}/in/**/*.mp4", folder / "out"), []
    summary = predict_many(
        predict_one, videos, folder / "out", settings, Shard.parse(shard), said.append
    )
    return summary, json.loads((folder / "out" / "manifest.json").read_text()), said


def test_names_are_paths_below_the_pattern(folder):
    out = folder / "out"
    assert list(find_videos(f"{folder}/in/**/*.mp4", out)) == [
        "b.mp4",
        "c.mp4",
        "deep/bad.mp4",
        "deep/er/a.mp4",
    ]
    assert list(find_videos(f"{folder}/in/b.mp4", out)) == ["b.mp4"]
    with pytest.raises(InputError, match="no file matches; quote"):
        find_videos(f"{folder}/in/*.webm", out)


def test_results_never_replace_a_video(folder):
    videos = find_videos(f"{folder}/in/**/*.mp4", folder / "in")
    with pytest.raises(UsageError, match="b.mp4 would take its place"):
        predict_many(predict_one, videos, folder / "in", {}, Shard(0, 1), print)
    assert (folder / "in" / "b.mp4").read_text() == "b.mp4" and len(list(folder.rglob("*"))) == 8


@pytest.mark.parametrize("where", ["in/out", "."])
def test_results_are_no_videos(folder, where):
    def overlay(video, output):
        predict_one(video, output)
        (output / "overlay.mp4").write_text("masks")

    output, pattern = folder / where, f"{folder}/in/**/*.mp4"
    for _ in range(2):
        videos = find_videos(pattern, output)
        assert len(videos) == 4
        predict_many(overlay, videos, output, {}, Shard(0, 1), print)
    (output / "x.unfinished.mp4").mkdir()
    (output / "x.unfinished.mp4" / "overlay.mp4").touch()
    assert find_videos(pattern, output).keys() == videos.keys()


def test_every_video_is_done_or_failed_with_its_reason(folder):
    summary, manifest, _ = run(folder)
    assert summary == "3 done, 1 failed, 0 open"
    assert manifest["videos"]["deep/er/a.mp4"] == {"state": "done"}
    failed = manifest["videos"]["deep/bad.mp4"]
    assert failed["state"] == "failed" and failed["reason"].endswith("bad.mp4: damaged")


def test_a_second_run_only_takes_what_is_open_or_newer(folder):
    run(folder)
    seen = []

    def second(video, output):
        seen.append(video.name)

    run(folder, predict_one=second)
    assert seen == []
    late = (folder / "out" / "deep" / "bad.mp4.failed.txt").stat().st_mtime + 5
    os.utime(folder / "in" / "deep" / "bad.mp4", (late, late))
    (folder / "out" / "b.mp4" / "results.json").unlink()
    run(folder, predict_one=second)
    assert seen == ["b.mp4", "bad.mp4"]


def test_an_interrupted_run_leaves_a_manifest(folder):
    def interrupted(video, output):
        if video.name == "c.mp4":
            raise KeyboardInterrupt
        predict_one(video, output)

    with pytest.raises(KeyboardInterrupt):
        run(folder, predict_one=interrupted)
    manifest = json.loads((folder / "out" / "manifest.json").read_text())
    assert (manifest["done"], manifest["failed"], manifest["open"]) == (1, 0, 3)


def test_a_video_that_is_gone_does_not_end_the_run(folder):
    def moves(video, output):
        if video.name == "b.mp4":
            for name in ("b.mp4", "c.mp4"):
                (folder / "in" / name).rename(folder / name)
        if not video.exists() and video.name == "c.mp4":
            raise FileNotFoundError(video)
        predict_one(video, output)

    summary, manifest, _ = run(folder, predict_one=moves)
    assert summary == "2 done, 2 failed, 0 open"
    assert manifest["videos"]["b.mp4"] == {"state": "done"}
    gone = {"state": "failed", "reason": "no such file any more"}
    assert manifest["videos"]["c.mp4"] == gone
    (folder / "c.mp4").rename(folder / "in" / "c.mp4")
    assert run(folder)[0] == "2 done, 1 failed, 0 open"


def test_a_video_from_the_future_is_done_once(folder):
    later = time.time() + 86_400
    os.utime(folder / "in" / "b.mp4", (later, later))
    assert run(folder)[0] == run(folder, predict_one=None)[0] == "3 done, 1 failed, 0 open"
    os.utime(folder / "in" / "b.mp4", (later + 1, later + 1))
    (folder / "out" / "b.mp4" / "results.json").unlink()
    (folder / "out" / "b.mp4").rmdir()
    assert run(folder)[2][0] == "4 videos, 3 were finished before"


@pytest.mark.parametrize("content", ["", '{"x', "[1]"])
def test_damaged_settings_are_named(folder, content):
    (folder / "out").mkdir()
    (folder / "out" / "settings.json").write_text(content)
    with pytest.raises(InputError, match=r"settings.json: (not JSON|a JSON list)"):
        run(folder)


def test_a_full_disk_is_not_the_videos_fault(folder):
    def full(video, output):
        raise OSError("no space left on the disk")

    def full_to_ffmpeg(video, output):
        raise av.error.FFmpegError(errno.ENOSPC, "No space left on device")

    for write in (full, full_to_ffmpeg):
        with pytest.raises(OSError, match="(?i)no space"):
            run(folder, predict_one=write)
        assert not list((folder / "out").rglob("*.failed.txt"))


def test_a_missing_flag_is_not_the_videos_fault(folder):
    def refuses(video, output):
        raise UsageError("--text is missing")

    with pytest.raises(UsageError):
        run(folder, predict_one=refuses, text=None)
    assert run(folder, text="a dog")[0] == "3 done, 1 failed, 0 open"
    with pytest.raises(InputError, match="other settings"):
        run(folder, text=None)


def test_a_name_in_another_encoding(folder):
    (folder / "in" / os.fsdecode(b"bad\xe9.mp4")).touch()
    assert run(folder)[0] == "3 done, 2 failed, 0 open"
    reason = run(folder)[1]["videos"][os.fsdecode(b"bad\xe9.mp4")]["reason"]
    assert reason.endswith("bad\\udce9.mp4: damaged")


def test_shards_share_the_videos_and_the_manifest(folder):
    assert run(folder, "0/2")[0] == "1 done, 1 failed, 2 open"
    assert run(folder, "1/2")[0] == "3 done, 1 failed, 0 open"
    for wrong in ("2/2", "1", "-1/2", "0/0", "a/b"):
        with pytest.raises(InputError, match="expected I/N"):
            Shard.parse(wrong)


def _note(output, barrier):
    barrier.wait()
    many_videos.check_settings(output, {"checkpoint": "a"})


def test_shards_that_start_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(4)
    shards = [context.Process(target=_note, args=(tmp_path / "out", barrier)) for _ in range(4)]
    for process in shards:
        process.start()
    for process in shards:
        process.join(120)
    assert [process.exitcode for process in shards] == [0] * 4


def test_other_settings_need_another_folder(folder):
    run(folder, checkpoint="a")
    with pytest.raises(InputError, match="checkpoint 'a' there, 'b' now"):
        run(folder, checkpoint="b")
