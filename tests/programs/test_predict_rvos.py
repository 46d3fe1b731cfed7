"""Masks of referring-video sets, from a tiny random model to the scores."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from avs_jax.data.rvos_folders import VideoSet
from avs_jax.inference import expression_frames
from avs_jax.inference.predictor import Predictor
from avs_jax.results.refavs import THRESHOLD
from avs_jax.runtime.checkpoint import Checkpoint, save_variables
from avs_jax.tasks import make_task
from avs_jax.tasks.refer import make_score
from configs import refer_cma, s4_vct
from scripts import evaluate_rvos, predict_rvos
from tests.small import random_variables

WORDS = ("object", "as", "annotator", "says", "the", "one", "1", "2", "3", "4")


def save_tiny(folder, config):
    save_variables(folder, random_variables(config, (64, 64)), config)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Random weights of the smallest recipe, in windows of four frames."""
    config = refer_cma.get_config("tiny")
    config.model.backbone.depths = (1, 1, 1, 1)
    config.model.fusion.levels = ("res5",)
    config.data.num_frames = 4
    config.data.text.num_seconds = 0
    config.data.text.words = WORDS
    config.evaluate.presence_threshold = 0.0  # random weights mean something everywhere
    return save_tiny(tmp_path_factory.mktemp("weights") / "refer", config)


@pytest.fixture
def davis(golden_dir, tmp_path):
    return shutil.copytree(golden_dir / "refer" / "rvos" / "davis17", tmp_path / "davis17")


def predict(name, root, checkpoint, output, *more):
    flags = [f"--set={name}", f"--root={root}", f"--checkpoint={checkpoint}", f"--output={output}"]
    return predict_rvos.main(["predict_rvos", *flags, *more])


def states(output):
    manifest = json.loads((output / "manifest.json").read_text())
    return {video: entry["state"] for video, entry in manifest["videos"].items()}


@pytest.mark.slow
def test_from_a_damaged_frame_to_the_scores(davis, checkpoint, tmp_path, capsys):
    output, broken = tmp_path / "masks", davis / "valid" / "JPEGImages" / "bear-b" / "00005.jpg"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:300])
    assert predict("davis17", davis, checkpoint, output) == 1
    assert "1 of 2 videos failed" in capsys.readouterr().err
    assert states(output) == {"bear-b": "failed", "kite-a": "done"}
    assert "00005.jpg: unreadable image" in (output / "bear-b.failed.txt").read_text()
    assert not (output / "bear-b").exists()

    broken.write_bytes(whole)
    before = (output / "kite-a" / "results.json").stat().st_mtime_ns
    assert predict("davis17", davis, checkpoint, output) == 0
    assert states(output) == {"bear-b": "done", "kite-a": "done"}
    assert "2 videos, 1 were finished before" in capsys.readouterr().err
    assert (output / "kite-a" / "results.json").stat().st_mtime_ns == before

    videos, areas = VideoSet("davis17", davis), []
    for expression in videos.expressions:
        folder = output / expression.video / expression.id
        names = videos.frames[expression.video]
        assert sorted(path.name for path in folder.iterdir()) == [f"{name}.png" for name in names]
        results = json.loads((output / expression.video / "results.json").read_text())
        (found,) = [x for x in results["expressions"] if x["expression"] == expression.id]
        assert found["text"] == expression.text and not found["is_cut"]
        for row, name in zip(found["frames"], names, strict=True):
            with Image.open(folder / f"{name}.png") as image:
                mask = np.asarray(image)
            assert mask.shape == (48, 64) and set(np.unique(mask)) <= {0, 255}
            assert row["frame"] == name and row["area"] == (mask > 0).mean()
            areas.append(row["area"])
    assert max(areas) > 0

    flags = ["--set=davis17", f"--root={davis}", f"--predictions={output}"]
    assert evaluate_rvos.main([*flags, f"--output={tmp_path / 'scores'}"]) == 0
    report = json.loads((tmp_path / "scores" / "report.json").read_text())["protocols"]
    assert report["coverage"] == {"expressions": 20, "without_prediction": 0}
    assert evaluate_rvos.main([*flags, f"--output={tmp_path / 'b'}", "--protocol=merged"]) == 0
    more = ["--config.evaluate.presence_threshold=0.5"]
    assert predict("davis17", davis, checkpoint, output, *more) == 1
    assert "holds results with other settings" in capsys.readouterr().err


@pytest.mark.slow
def test_the_model_gets_silence_and_each_image_once_for_several_expressions(
    golden_dir, checkpoint, tmp_path
):
    """As every expression alone; names of videos have folders."""
    found = Checkpoint.find(checkpoint)
    task = make_task(found.config)
    predictor = Predictor(task, found.config, found)
    asked, outputs = [], predictor.outputs
    predictor.outputs = lambda inputs: asked.append(inputs) or outputs(inputs)
    videos = VideoSet("revos", golden_dir / "refer" / "rvos" / "revos")
    (video, mine), *_ = videos.of_videos().items()
    assert "/" in video and len(mine) == 5
    score = make_score(found.config)
    expression_frames.predict_frames(predictor, videos, mine, tmp_path / "x", score, THRESHOLD)
    assert [x["images"].shape[0] for x in asked] == [1, 1]  # 4 frames and 1
    assert [x["text_ids"].shape[0] for x in asked] == [8, 8]  # 5, and the last again
    assert [x["valid"].sum() for x in asked] == [4, 1]
    for inputs in asked:
        heard = inputs["log_mel"][inputs["valid"]]
        np.testing.assert_allclose(heard, np.log(0.01), atol=1e-6)
    results = json.loads((tmp_path / "x" / "results.json").read_text())["expressions"]
    for place, together in ((0, results[0]), (4, results[4])):
        folder = tmp_path / f"alone{place}"
        expression_frames.predict_frames(predictor, videos, mine[place:][:1], folder, score, 0.4)
        (alone,) = json.loads((folder / "results.json").read_text())["expressions"]
        for a, b in zip(alone["frames"], together["frames"], strict=True):
            assert a["frame"] == b["frame"]
            assert a["presence"] == pytest.approx(b["presence"], abs=2e-4)
            assert a["area"] == pytest.approx(b["area"], abs=0.01)
    spread = [row["presence"] for row in results[0]["frames"]]
    assert np.ptp(spread) > 0  # every frame its own answer


def test_mistakes_are_named_before_anything_is_written(davis, checkpoint, tmp_path, capsys):
    output = tmp_path / "masks"

    def fails(match, name="davis17", model=checkpoint, *more):
        assert predict(name, davis, model, output, *more) == 1
        assert match in capsys.readouterr().err
        assert not output.exists()

    fails("set 'davis': choose one of", "davis")
    fails("meta_expressions.json: missing", "davis17", checkpoint, "--split=test")
    fails(
        "is no model of task 'refer'", model=save_tiny(tmp_path / "s4", s4_vct.get_config("tiny"))
    )
    shutil.rmtree(davis / "valid" / "JPEGImages" / "kite-a")
    fails("kite-a: no such folder; frames of 1 of 2 videos are missing")
    meta = davis / "meta_expressions" / "valid" / "meta_expressions.json"
    content = json.loads(meta.read_text())
    for video in content["videos"].values():
        video["expressions"] = {}
    meta.write_text(json.dumps(content))
    fails("no expressions")
    assert predict_rvos.main(["predict_rvos", "--set=mevis"]) == 1
    assert "--checkpoint is missing" in capsys.readouterr().err


def test_expressions_that_are_not_read_whole_are_counted(davis, checkpoint, capsys):
    task = make_task(Checkpoint.find(checkpoint).config)
    videos = VideoSet("davis17", davis)
    predict_rvos.announce_tokens(task, videos.expressions)
    assert capsys.readouterr().err == ""
    meta = davis / "meta_expressions" / "valid" / "meta_expressions.json"
    content = json.loads(meta.read_text())
    content["videos"]["kite-a"]["expressions"]["0"]["exp"] = " "
    content["videos"]["kite-a"]["expressions"]["1"]["exp"] = "the one " * 40
    meta.write_text(json.dumps(content))
    predict_rvos.announce_tokens(task, VideoSet("davis17", davis).expressions)
    said = capsys.readouterr().err
    assert "1 of 20 expressions lose their end" in said and "1 of 20 expressions are empty" in said
