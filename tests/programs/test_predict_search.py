"""predict --search and zero-shot classes, from the command line, with a tiny random model."""

import json

import numpy as np
import pytest
from PIL import Image

from avs_jax import predict
from avs_jax.data.audio import encode_wav
from avs_jax.generate.video_writer import write_video
from avs_jax.inference import embedding_search, index_building
from avs_jax.inference.predictor import Predictor
from avs_jax.runtime.checkpoint import Checkpoint, save_variables
from avs_jax.runtime.step import init_variables
from avs_jax.task import stack_rows
from avs_jax.tasks import make_task, segment
from configs import align_s4
from scripts import index as index_program
from tests import small

pytestmark = pytest.mark.slow


def save_random(folder, seed):
    config = align_s4.get_config("tiny")
    config.data.text.categories = ("kind0", "kind1", "dog_barking")
    config.model.text.vocab_size = 16
    task = make_task(config)
    example = task.inputs(stack_rows([task.rows.empty(train=False)], task.rows.fields))
    params, stats = init_variables(task.model, example, seed)
    save_variables(folder, {"params": params, "batch_stats": stats}, config)
    return str(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkpoint, an index of seven records, and a video."""
    folder = tmp_path_factory.mktemp("search")
    checkpoint = save_random(folder / "weights", 0)
    with pytest.MonkeyPatch.context() as patch:
        for module in (embedding_search, index_building):
            patch.setattr(module, "open_records", lambda config, split: small.records(7))
        flags = [f"--checkpoint={checkpoint}", f"--output={folder}/index.npz", "--split=test"]
        assert index_program.main(["x", *flags]) == 0
        rng = np.random.default_rng(0)
        frames = rng.integers(0, 255, (16, 48, 64, 3), dtype=np.uint8)
        sound = rng.integers(-9000, 9000, 2 * 16_000, dtype=np.int16)
        (folder / "videos").mkdir()
        write_video(folder / "videos" / "a.mp4", frames, 8, sound, 16_000)
        yield folder


def search(place, *flags):
    out = place / "out"
    given = [f"--checkpoint={place}/weights", f"--output={out}", *flags]
    assert predict.main(["x", *given]) == 0
    return json.loads((out / "results.json").read_text()), (out / "hits.html").read_text()


def test_a_sound_finds_clips_by_their_frames(place):
    record = small.records(7)[4]
    wav = place / "x.wav"
    wav.write_bytes(encode_wav(record["waveform"], 16_000))
    results, page = search(place, f"--search={place}/index.npz", f"--audio={wav}")
    assert results["compared_with"] == {"audio": ["frames"]} and results["clips"] == 7
    scores = [hit["similarity"] for hit in results["hits"]]
    assert len(scores) == 7 and scores == sorted(scores, reverse=True)
    assert page.count("<audio controls") == 7 and page.count("<img") == 7
    assert {hit["category"] for hit in results["hits"]} == {"kind0", "kind1", "kind2"}
    with np.load(place / "index.npz") as index:
        best = results["hits"][0]
        row = index["name"].tolist().index(best["name"])
        assert best["place"] == row
    Image.fromarray(record["frames"][2]).save(place / "x.png")
    results, _ = search(place, f"--search={place}/index.npz", f"--image={place}/x.png")
    assert results["compared_with"] == {"frames": ["audio"]}
    results, _ = search(place, f"--search={place}/index.npz", "--text=the sound of a kind0")
    assert results["compared_with"] == {"text": ["audio", "frames"]}
    assert results["cut_word_pieces"] == [0]


def test_texts_too_long_for_the_model_are_named(place, capsys):
    limit = align_s4.get_config("tiny").data.text.max_tokens
    long = " ".join(["kind0"] * (limit + 1))  # <s> and </s> take two
    note = f"(cut: the last 3 word pieces were not read, config.data.text.max_tokens = {limit})"
    flags = [f"--search={place}/index.npz", "--text=kind0", f"--text={long}"]
    results, _ = search(place, *flags)
    assert results["cut_word_pieces"] == [0, 3]
    assert f"{long!r} {note}" in capsys.readouterr().out
    out, checkpoint = place / "cut", f"--checkpoint={place}/weights"
    flags = [checkpoint, f"--video={place}/videos/a.mp4", f"--output={out}"]
    assert predict.main(["x", *flags, "--text=kind0", f"--text={long}"]) == 0
    results = json.loads((out / "results.json").read_text())
    assert list(results["cut_word_pieces"]) == [long] and results["cut_word_pieces"][long] >= 3
    assert "word pieces were not read" in capsys.readouterr().out


def test_videos_are_indexed_and_found(place, capsys):
    flags = [f"--checkpoint={place}/weights", f"--output={place}/v.npz"]
    assert index_program.main(["x", *flags, f"--folder={place}/videos"]) == 0
    results, page = search(place, f"--search={place}/v.npz", f"--video={place}/videos/a.mp4")
    (hit,) = results["hits"]
    assert hit["name"] == "a, second 0" and hit["source"].endswith("a.mp4")
    assert "<audio controls" in page
    other = save_random(place / "other", 1)
    flags = [f"--checkpoint={other}", f"--output={place}/no", f"--search={place}/v.npz"]
    assert predict.main(["x", *flags, "--text=a kind0"]) == 1
    assert "made with other weights" in capsys.readouterr().err
    assert predict.main(["x", *flags]) == 1
    assert "--search takes one of --audio, --image" in capsys.readouterr().err


def test_an_interrupted_index_resumes(place, monkeypatch, capsys):
    embed, seen = index_building.embed, []

    def interrupted(predictor, record):
        seen.append(record["clip_id"])
        if len(seen) == 4:
            raise KeyboardInterrupt
        return embed(predictor, record)

    monkeypatch.setattr(index_building, "embed", interrupted)
    flags = [f"--checkpoint={place}/weights", f"--output={place}/again.npz", "--split=test"]
    assert index_program.main(["x", *flags]) == 130
    assert "the same command resumes" in capsys.readouterr().err
    assert not (place / "again.npz").exists()
    assert index_program.main(["x", *flags]) == 0
    assert "resuming after 3 of 7 clips" in capsys.readouterr().out
    assert len(seen) == 4 + 4 and len(set(seen)) == 7
    assert (place / "again.npz").read_bytes() == (place / "index.npz").read_bytes()
    assert not (place / "again.part.npz").exists()


def test_a_sound_is_compared_with_every_cell(place):
    """At 32 px a frame has one cell, so its cosine is that of the frame's own vector."""
    checkpoint = Checkpoint.find(place / "weights")
    predictor = Predictor(make_task(checkpoint.config), checkpoint.config, checkpoint)
    found = embedding_search.embed(predictor, {**small.records(1)[0], "texts": ()})
    cosines = (found["frames_seconds"] * found["audio_seconds"]).sum(-1)
    assert found["sound_map"].shape == (5, 1, 1)
    np.testing.assert_allclose(found["sound_map"][:, 0, 0], cosines, atol=1e-6)


def test_what_a_mask_shows_is_named(place):
    name = segment._make_namer(place / "weights")
    frames = np.random.default_rng(1).integers(0, 255, (7, 40, 30, 3), dtype=np.uint8)
    masks = np.zeros((7, 40, 30), bool)
    masks[:, 5:20, 3:9] = True
    masks[4] = False
    sound = np.random.default_rng(2).integers(-900, 900, (7 * 16_000, 1), dtype=np.int16)
    found = name(frames, masks, sound, 16_000)
    assert found[4] == {} and len(found) == 7
    assert {row["class"] for row in found if row} <= {"kind0", "kind1", "dog_barking"}
    other = frames.copy()
    other[:, 20:] = 0  # outside of the boxes
    other[4] = 0
    assert name(other, masks, sound, 16_000) == found


def test_classes_of_a_video_without_training(place):
    out = place / "classes"
    flags = [f"--checkpoint={place}/weights", f"--video={place}/videos/a.mp4", f"--output={out}"]
    assert predict.main(["x", *flags]) == 0
    results = json.loads((out / "results.json").read_text())
    assert set(results["classes"]) == {"kind0", "kind1", "dog_barking"}
    assert sum(results["classes"].values()) == pytest.approx(1, abs=1e-3)
    assert [row["second"] for row in results["seconds"]] == [0, 1]
    assert predict.main(["x", *flags, "--text=kind0", "--text=kind1"]) == 0
    results = json.loads((out / "results.json").read_text())
    assert set(results["classes"]) == {"kind0", "kind1"}
