"""Ref-AVS's numbers from counts: the reference's, whatever the batches of the evaluation."""

import json

import jax
import numpy as np
import pytest

from avs_jax.results import refavs
from avs_jax.results.counts import FrameCounts
from avs_jax.results.pixel_scores import FALLBACKS, expression_score


@pytest.fixture(scope="module")
def golden():
    from tests.conftest import GOLDEN

    with np.load(GOLDEN / "refer" / "golden_refavs.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def clips(golden):
    """Probabilities and truth of ten clips of ten frames."""
    logits = golden["refavs/logits_int8_times_16"].astype(np.float32) / 16
    prob = (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32)
    truth = np.unpackbits(golden["refavs/gt_packbits"])[: prob.size].reshape(prob.shape)
    shape = (-1, 10, *prob.shape[1:])
    return prob.reshape(shape), truth.reshape(shape).astype(np.uint8)


def count(prob, truth, batch_size=3, fallback=None, **flags) -> FrameCounts:
    meter, total = refavs.ExpressionMeter({}), len(prob)
    for start in range(0, total, batch_size):
        rows = slice(start, start + batch_size)
        shape = prob[rows].shape[:2]
        batch = {
            "labels": truth[rows],
            "valid": np.ones(shape, bool),
            "supervised": np.ones(shape, bool),
            "frame_index": np.broadcast_to(np.arange(shape[1]), shape),
            "clip_id": [f"e{i}" for i in range(start, start + shape[0])],
            "category": ["dog"] * shape[0],
        }
        batch |= {name: np.asarray(value)[rows] for name, value in flags.items()}
        scores = {"pred": prob[rows]}
        meter.add(scores if fallback is None else scores | {"fallback": fallback[rows]}, batch)
    return meter.table()


def test_the_reference_s_numbers(golden, clips):
    want = json.loads(golden["meta/json"].tobytes())
    counts = count(*clips)
    np.testing.assert_allclose(
        refavs.frame_j(counts), golden["refavs/per_frame/J"], atol=1e-6, rtol=0
    )
    found = refavs.refavs(counts)
    batches = want["refavs_batches_of_4"]
    assert found["J"] == pytest.approx(batches["J_epoch"], abs=1e-6)
    assert found["f_beta(batch=4)"] == pytest.approx(batches["F_epoch"], abs=1e-6)
    assert found["f_beta(stream)"] == pytest.approx(want["refavs_all_at_once"]["F_beta"], abs=1e-6)
    every = np.ones(len(clips[0]), bool)
    null = refavs.null(count(*clips, is_null=every))
    assert null["S(batch=4)"] == pytest.approx(batches["null_S_epoch"], abs=1e-6)
    assert found["J&f_beta"] == (found["J"] + found["f_beta(batch=4)"]) / 2
    assert refavs.refavs(count(*clips, batch_size=10)) == found


def test_parts_of_a_split(clips):
    prob, truth = (x[:4] for x in clips)
    is_null, is_seen = np.array([0, 0, 1, 0], bool), np.array([1, 0, 0, 0], bool)
    has_text, is_cut = np.array([1, 1, 1, 0], bool), np.array([0, 1, 0, 0], bool)
    table = count(prob, truth, is_null=is_null, is_seen=is_seen, has_text=has_text, is_cut=is_cut)
    found = refavs.protocols(table)
    assert found["text"] == {"fallback_rate": 0, "no_text_rate": 0.25, "cut_rate": 0.25}
    rest = [1, 3]
    assert found["unseen(paper)"] == refavs.refavs(count(prob[rest], truth[rest]))
    assert found["unseen(csv)"] == found["referring"] != found["unseen(paper)"]
    pixels = prob[2] > 0.5
    assert found["null"]["S"] == pytest.approx(np.sqrt(pixels.mean()))
    seen = refavs.protocols(count(prob, truth, is_seen=np.ones(4, bool)))
    assert sorted(seen) == ["refavs", "text"]
    table = count(prob, truth, is_seen=np.ones(4, bool), kind=np.array([1, 3, 0, 3]))
    by_kind = refavs.protocols(table)
    assert sorted(by_kind) == ["refavs", "refavs(kind look)", "refavs(kind time)", "text"]
    assert by_kind["refavs(kind time)"] == refavs.refavs(count(prob[rest], truth[rest]))


def test_a_false_quarter_on_an_empty_frame():
    prob, truth = np.zeros((1, 10, 8, 8), np.float32), np.zeros((1, 10, 8, 8), np.uint8)
    prob[:, :, :4, :4] = 1
    counts = count(prob, truth, is_null=np.ones(1, bool))
    assert refavs.refavs(counts)["J"] == 0.75 and refavs.null(counts)["S"] == 0.5
    assert refavs.refavs(counts)["f_beta(clip)"] is None
    prob[:] = np.float32(0.4)  # the threshold is strict
    assert refavs.refavs(count(prob, truth))["J"] == 1


scored = jax.jit(expression_score, static_argnames=("size", "threshold", "fallback"))


@pytest.mark.parametrize("fallback", FALLBACKS)
def test_a_fallback_on_null_expressions(fallback):
    """It cannot fire where the model knows; where it is wrong, the report says what that costs.

    Frames: every second one has a mask, if anything is present.
    """
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 4, 2, 3)).astype(np.float32)
    logits[:, ::2, 0, 1] += 6  # an object
    logits[:, 1::2, :, 2] += 9  # none
    masks = 20 * rng.normal(size=(6, 4, 4, 4, 2)).astype(np.float32)
    outputs = {"pred_logits": logits, "pred_masks": masks}
    inputs = {"images": np.zeros((6, 4, 16, 16, 3), np.uint8), "valid": np.ones((6, 4), bool)}
    truth, is_null = np.zeros((6, 4, 8, 8), np.uint8), np.ones(6, bool)

    def report(presence, kind):
        found = scored(
            outputs | {"presence_logits": presence.astype(np.float32)},
            inputs,
            size=(8, 8),
            threshold=refavs.THRESHOLD,
            fallback=kind,
        )
        pred, fires = np.asarray(found["pred"]), np.asarray(found["fallback"])
        return refavs.protocols(count(pred, truth, fallback=fires, is_null=is_null))["null"]

    absent = report(np.full((6, 4), -1), fallback)
    assert absent["S"] == absent["S(no fallback)"] == absent["fallback_rate"] == 0
    presence = np.tile([1, -1, 1, -1], (6, 1))  # wrong, where a mask is
    found, without = report(presence, fallback), report(presence, "none")
    assert found["S"] <= without["S"] + 1e-6 and without["S"] > 0 == found["fallback_rate"]
    presence[:3, 1] = 1  # and where there is none
    found, without = report(presence, fallback), report(presence, "none")
    assert found["S(no fallback)"] == without["S"] == without["S(no fallback)"]
    assert found["fallback_rate"] == (0 if fallback == "none" else 3 / 24)
    assert (found["S"] > without["S"]) == (fallback in ("prev_frame", "top_query"))
    assert report(presence, "zeros")["S"] <= without["S"] + 1e-6
