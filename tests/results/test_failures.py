"""Tags of failures: each rule on a frame drawn for it, at both sides of its threshold."""

import numpy as np
import pytest

from avs_jax.results import failures

SIZE = 40


def square(top, left, side):
    mask = np.zeros((SIZE, SIZE), bool)
    mask[top : top + side, left : left + side] = True
    return mask


TRUTH, SILENT = square(5, 5, 20), square(28, 28, 10)
OBJECTS = np.where(TRUTH, 1, np.where(SILENT, 2, 0)).astype(np.uint8)


def tags_of(pred=TRUTH, truth=TRUTH, objects=OBJECTS, moving=TRUTH, weight=None, evidence=None):
    counter = failures.FailureCounter()
    batch = {
        "clip_id": ["clip"],
        "supervised": np.array([[True, False]]),
        "valid": np.array([[True, True]]),
        "frame_index": np.array([[0, 1]]),
    }
    images = {"labels": truth.astype(np.uint8), "objects": objects, "moving": moving}
    batch |= {name: np.stack([image, image])[None] for name, image in images.items()}
    scores = {"pred": np.stack([pred, ~pred]).astype(np.float32)[None]}
    for name, found in (("motion_weight", weight), ("sync_evidence", evidence)):
        if found is not None:
            scores[name] = np.stack([found, found])[None]
    counter.add(scores, batch)
    assert len(counter.table()) == 1  # the other frame has no ground truth
    (tags,) = failures.tags(counter.table()).values()
    return tags


MAP_INSIDE = np.zeros((40, 40), np.float32)
MAP_INSIDE[5:25, 5:25] = 1


@pytest.mark.parametrize(
    "given, expected",
    [
        ({}, []),
        ({"pred": TRUTH | square(28, 28, 8)}, ["silent object"]),
        ({"pred": TRUTH | square(28, 28, 7)}, []),  # 49 of 100 pixels
        ({"objects": np.full((SIZE, SIZE), 255, np.uint8), "pred": ~TRUTH}, []),
        ({"weight": MAP_INSIDE}, []),
        ({"weight": 1 - MAP_INSIDE}, ["moving distractor"]),
        ({"weight": np.zeros((8, 8), np.float32)}, []),
        ({"evidence": MAP_INSIDE - 0.9}, []),  # what speaks against a cell is no mass
        ({"evidence": 0.1 - MAP_INSIDE}, ["moving distractor"]),
        ({"evidence": -MAP_INSIDE}, []),
        ({"evidence": 1 - MAP_INSIDE, "weight": MAP_INSIDE}, []),  # the map of AMA comes first
        ({"moving": square(5, 5, 6)}, ["still sounder"]),  # 36 of 400
        ({"moving": square(5, 5, 7)}, []),
        ({"truth": square(5, 5, 3), "pred": square(5, 5, 3)}, ["small"]),
        ({"truth": square(5, 5, 4), "pred": square(5, 5, 4)}, []),  # exactly 1 %
        ({"pred": square(5, 5, 18)}, ["boundary only"]),
        ({"pred": TRUTH & ~square(12, 12, 6)}, []),  # a hole, 7 px from the outline
        ({"truth": np.zeros_like(TRUTH), "pred": np.zeros_like(TRUTH)}, []),
    ],
)
def test_rules(given, expected):
    assert tags_of(**given) == expected


def test_the_summary_counts_clips():
    clips = {"a": ["small", "boundary only"], "b": ["small"], "c": []}
    assert failures.count_tags(clips) == {
        "silent object": 0,
        "moving distractor": 0,
        "still sounder": 0,
        "small": 2,
        "boundary only": 1,
    }
