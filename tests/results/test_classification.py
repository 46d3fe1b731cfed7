"""Numbers of classification against loops over clips and classes; the picture of confusions."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest

from avs_jax.results.classification import (
    ClassTable,
    ConfusionRecorder,
    measures,
    protocols,
)

RNG = np.random.default_rng(4)


def one_class(count=40, classes=6):
    scores = np.float32(RNG.integers(-3, 4, (count, classes)))  # many ties
    return scores, np.eye(classes, dtype=bool)[RNG.integers(0, classes - 1, count)]


def test_top_k_and_f1_by_loops():
    scores, truth = one_class()
    found = measures(scores, truth, multi_label=False)
    for k in (1, 5):
        hits = 0
        for row, own in zip(scores, truth.argmax(1), strict=True):
            others = [s for j, s in enumerate(row) if j != own]
            hits += sum(s >= row[own] for s in others) < k
        assert found[f"top-{k}"] == pytest.approx(hits / len(scores))
    f1 = []
    predicted = scores.argmax(1)
    for k in range(6):
        own, said = truth.argmax(1) == k, predicted == k
        if own.any() or said.any():
            f1.append(2 * (own & said).sum() / (own.sum() + said.sum()))
    assert found["F1"] == pytest.approx(np.mean(f1))


def test_average_precision_of_several_classes_by_loops():
    scores = RNG.standard_normal((30, 5)).astype(np.float32)
    truth = RNG.random((30, 5)) < 0.3
    truth[:, 4] = False  # does not occur
    found = measures(scores, truth, multi_label=True)
    precisions = []
    for k in range(4):
        order, hits, sums = np.argsort(-scores[:, k]), 0, 0.0
        for place, i in enumerate(order, 1):
            if truth[i, k]:
                hits += 1
                sums += hits / place
        precisions.append(sums / truth[:, k].sum())
    assert found["mAP"] == pytest.approx(np.mean(precisions)) and "top-1" not in found
    assert measures(scores[:0], truth[:0], multi_label=True) == {"mAP": None, "F1": None}


def test_a_protocol_counts_clips_that_have_what_it_reads():
    right = np.eye(3, dtype=np.float32)
    columns = {
        "clip_id": np.array(["a", "b", "c"]),
        "known": np.array([True, True, False]),
        "classes": right,
        "present": np.array([[1, 1], [0, 1], [1, 1]], bool),
        "logits": right,
        "frames_logits": right[[0, 2, 1]],
        "audio_logits": right[[1, 1, 1]],
    }
    found = protocols(ClassTable(columns), multi_label=False)
    assert found["fused"]["top-1"] == 1 and found["frames alone"]["top-1"] == 1
    assert found["sound alone"]["top-1"] == 0.5


def test_confusions_are_a_picture():
    recorder = ConfusionRecorder(("cat & dog", "piano"), 4)
    truth = np.eye(4)[[0, 0, 1, 3]]
    batch = {"classes": truth, "known": np.array([1, 1, 1, 0], bool), "valid": np.ones((4, 2))}
    recorder.add({"logits": np.eye(4)[[0, 1, 1, 2]]}, batch)
    picture = ET.fromstring(recorder.files()["confusion.svg"])
    texts = [element.text for element in picture.iter() if element.text and element.text.strip()]
    assert texts.count("1") == 3 and "cat & dog" in texts and "3" not in texts
