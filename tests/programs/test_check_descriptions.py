"""Descriptions read by a segmenter: IoU and ranks by loops, and both models through the program."""

import json

import numpy as np
import pytest

from avs_jax.runtime.checkpoint import save_variables
from avs_jax.runtime.step import init_variables
from avs_jax.spec import InputError
from avs_jax.task import stack_rows
from avs_jax.tasks import make_task
from configs import describe_generated, refer_vct
from scripts import check_descriptions
from scripts.check_descriptions import draw_others, frame_ious, mean_under, unambiguity
from tests.conftest import GOLDEN
from tfds_builders.refer_clips import list_clips


def test_iou_of_frames_with_and_without_the_object():
    truth = np.zeros((3, 4, 4), bool)
    truth[0, :2] = truth[1, :2] = True
    pred = np.zeros_like(truth)
    pred[0, :2], pred[1, 1:3], pred[2, 0] = True, True, True
    np.testing.assert_allclose(frame_ious(pred, truth), [1, 1 / 3, 0.75])


def test_an_object_must_be_the_only_best_of_its_clip():
    things = np.eye(5)
    texts = things.copy()
    texts[1] = (things[0] + things[1]) / 2  # a tie
    found = unambiguity(things, texts, ["a", "a", "b", "b", "c"])
    assert found == {"unambiguity": 0.75, "chance": 0.5, "ranked": 4}  # c has one object
    with pytest.raises(InputError, match="no clip of this split has several"):
        unambiguity(things[:1], texts[:1], ["a"])
    cells = np.zeros((1, 2, 2, 2))
    cells[0, 0, :, 0], cells[0, 1, :, 1] = 3, 5
    mask = np.zeros((1, 8, 8), bool)
    mask[0, :4] = True
    np.testing.assert_allclose(mean_under(cells, mask), [1, 0])


def test_nobody_is_given_the_own_words():
    for count in (*range(2, 13), 90):
        others = draw_others(count)
        assert sorted(others) == list(range(count)) and (others != np.arange(count)).all()


@pytest.mark.slow
def test_both_models_through_the_program(tmp_path, monkeypatch, capsys):
    clips, _, _ = list_clips(GOLDEN / "refer" / "refavs")
    rows = [clip.read()[0] for clip in clips["test_u"]]
    records = [record | {"item": i} for record in rows for i in range(len(record["uids"]))]
    monkeypatch.setattr(check_descriptions, "open_records", lambda config, split: records)
    for name, recipe in (("describe", describe_generated), ("refer", refer_vct)):
        config = recipe.get_config("tiny")
        config.data.text.words = ("the", "one", "that", "sounds")
        task = make_task(config)
        example = task.inputs(stack_rows([task.rows.empty(train=False)], task.rows.fields))
        params, stats = init_variables(task.model, example, 0)
        save_variables(tmp_path / name, {"params": params, "batch_stats": stats}, config)
    flags = [f"--checkpoint={tmp_path}/describe", f"--refer={tmp_path}/refer"]
    assert check_descriptions.main(["x", *flags, f"--output={tmp_path}/x.json"]) == 0
    assert capsys.readouterr().out.startswith("2 objects, 2 ranked: J_cycle")
    found = json.loads((tmp_path / "x.json").read_text())
    assert 0 <= found["J_cycle"] <= 1 and found["chance"] == 0.5
    assert found["unambiguity"] in (0, 0.5, 1)
    assert [row["object"] for row in found["objects"]] == [
        f"ccc333_20000_30000/{k}" for k in (0, 1)
    ]
