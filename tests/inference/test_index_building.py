"""An index of videos: damaged ones are listed, and only changed ones are read again."""

import os
import types

import numpy as np
import pytest

from avs_jax.data.container import VideoError
from avs_jax.inference import index_building
from avs_jax.inference.approximate_search import graph_path
from avs_jax.results.embedding_index import EmbeddingIndex
from avs_jax.spec import InputError
from scripts import index as index_program


@pytest.fixture
def folder(tmp_path):
    for name in "abcd":
        (tmp_path / f"{name}.mp4").write_text("damaged" if name == "b" else "video")
    return tmp_path


@pytest.fixture
def read(monkeypatch):
    """The names of the videos that were read."""
    names = []

    def read_clips(video, seconds):
        names.append(video.stem)
        if video.read_text() == "damaged":
            raise VideoError(video, "truncated")
        if video.read_text() == "stop":
            raise KeyboardInterrupt
        yield np.zeros((1, 4, 4, 3), np.uint8), np.zeros((16_000, 1), np.int16), 16_000, 0

    vectors = {name: np.ones(4, np.float32) for name in ("frames_embed", "audio_embed")}
    monkeypatch.setattr(index_building, "read_clips", read_clips)
    monkeypatch.setattr(index_building, "embed", lambda predictor, record: vectors)
    monkeypatch.setattr(index_building, "weights_checksum", lambda predictor: "checksum")
    return names


PREDICTOR = types.SimpleNamespace(
    config=types.SimpleNamespace(
        data=types.SimpleNamespace(num_frames=5), evaluate=types.SimpleNamespace(split="test")
    ),
    checkpoint=types.SimpleNamespace(directory="run"),
    task=types.SimpleNamespace(search=True),
)


def build(folder):
    videos = sorted(folder.glob("*.mp4"))
    return index_building.index_videos(PREDICTOR, videos, folder / "index.npz")


def test_a_damaged_video_is_left_out_and_listed(folder, read):
    index, failed = build(folder)
    assert list(index["name"]) == [f"{name}, second 0" for name in "acd"]
    assert len(failed) == 1 and "b.mp4" in failed[0] and "truncated" in failed[0]
    for name in "acd":
        (folder / f"{name}.mp4").write_text("damaged")
    with pytest.raises(InputError, match="no clip was found\n  .*a.mp4: truncated\n"):
        build(folder)


def test_only_changed_videos_are_read_again(folder, read):
    (folder / "d.mp4").write_text("stop")
    with pytest.raises(KeyboardInterrupt):
        build(folder)
    read.clear()
    (folder / "b.mp4").unlink()
    (folder / "d.mp4").write_text("video")
    os.utime(folder / "c.mp4", (0, 0))
    index, failed = build(folder)
    assert read == ["c", "d"] and len(index) == 3 and not failed


def test_the_program_says_what_is_not_in_the_index(folder, read, monkeypatch, capsys):
    graph_path(folder / "index.npz", "frames").touch()
    (folder / "results.mp4").mkdir()  # as predict --videos names folders
    monkeypatch.setattr(index_program, "make_predictor", lambda line: PREDICTOR)
    flags = [f"--output={folder}/index.npz", f"--folder={folder}", "--checkpoint=run"]
    assert index_program.main(["index", *flags]) == 1
    assert not graph_path(folder / "index.npz", "frames").exists()  # it was of another index
    assert "error: 1 of 4 videos are not in the index:\n  " in capsys.readouterr().err
    assert len(EmbeddingIndex.load(folder / "index.npz")) == 3
