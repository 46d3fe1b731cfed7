"""Counts and protocols: measured numbers of the originals, and a direct reading of the definition.

The measured cases (`bin/*`, `edge/*`, `sem/*`) fix the arithmetic, ties and empty frames included.
What they cannot show is independence of batching; that is tested on random maps.
"""

import json

import numpy as np
import pytest

from avs_jax.results import metrics
from avs_jax.results.counts import THRESHOLDS, FrameCounter, FrameCounts
from avs_jax.results.table import interleave
from tests.conftest import GOLDEN

BINARY_CASES = ("plain", "some_empty", "all_gt_empty", "all_ones", "extreme")
SEMANTIC_CASES = ("v1s", "v2", "bg_only", "zeros", "ignore255")


@pytest.fixture(scope="module")
def golden():
    manifest = json.loads((GOLDEN / "golden_eval_manifest.json").read_text())
    with np.load(GOLDEN / "golden_eval.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}, manifest


def object_probability(sem_seg):
    """softmax over the two channels of a measured [T, 2, S, S], in float32."""
    x = sem_seg.astype(np.float32)
    x = np.exp(x - x.max(axis=1, keepdims=True))
    return (x / x.sum(axis=1, keepdims=True))[:, 1]


def batch_of(labels, clip_ids=None, valid=None, supervised=None):
    """The fields of an evaluation batch that counting reads."""
    num_clips, num_frames = labels.shape[:2]
    return {
        "labels": labels,
        "valid": np.ones((num_clips, num_frames), bool) if valid is None else valid,
        "supervised": np.ones((num_clips, num_frames), bool) if supervised is None else supervised,
        "frame_index": np.tile(np.arange(num_frames), (num_clips, 1)),
        "clip_id": clip_ids or [f"clip{i}" for i in range(num_clips)],
        "category": ["dog"] * num_clips,
    }


def count(prob, labels, clip_ids=None, valid=None, batch=None):
    """FrameCounts of clips [B, T, S, S], fed `batch` clips at a time."""
    whole = batch_of(labels, clip_ids, valid)
    counter = FrameCounter(num_classes=2, facts={"ground_truth": "random"})
    for i in range(0, len(prob), batch or len(prob)):
        rows = slice(i, i + (batch or len(prob)))
        counter.add(prob[rows], {name: value[rows] for name, value in whole.items()})
    return counter.result()


def random_clips(seed=0, num_clips=7, num_frames=3, size=12):
    rng = np.random.default_rng(seed)
    labels = (rng.random((num_clips, num_frames, size, size)) < 0.3).astype(np.uint8)
    noise = rng.normal(size=labels.shape)
    # The offsets differ from clip to clip, so the best threshold does too.
    offset = rng.normal(scale=2, size=(num_clips, 1, 1, 1))
    prob = 1 / (1 + np.exp(-(2 * labels - 1 + noise + offset)))
    labels[2] = 0  # a clip without any object: with batch 1 an all-empty batch
    labels[4, 1] = 0
    return prob.astype(np.float32), labels


# ---- measured numbers ----


def test_thresholds_are_the_originals_float32_numbers(golden):
    arrays, _ = golden
    np.testing.assert_array_equal(THRESHOLDS, arrays["bin/thresholds"])
    assert THRESHOLDS[-1] == 1.0


@pytest.mark.parametrize("case", BINARY_CASES)
def test_binary_case(golden, case):
    arrays, manifest = golden
    want = manifest[f"bin/{case}"]
    prob = object_probability(arrays[f"bin/{case}/sem_seg"])
    counts = count(prob[None], arrays[f"bin/{case}/gt"][None])
    np.testing.assert_allclose(metrics.frame_iou(counts), want["iou_per_frame"], atol=1e-6)
    c = counts.counts
    has_object = c["gt"] > 0
    assert has_object.sum() == want["n_frames_in_F"]
    if has_object.any():
        curves = metrics.f_beta_curves(c["tp"], c["pp"], c["gt"])[has_object]
        np.testing.assert_allclose(curves.mean(0), arrays[f"bin/{case}/F_curve_mean"], atol=1e-6)
    for scores in (metrics.avsbench(counts, 1), metrics.stream(counts)):
        assert scores["mIoU"] == pytest.approx(want["mask_iou"], abs=1e-6)
        assert scores["f_beta"] == pytest.approx(want["fmeasure"], abs=1e-6)


@pytest.mark.parametrize(
    "key, batch", [("dataset_one_video_per_call", 1), ("dataset_batches_2_2_1", 2)]
)
def test_binary_dataset(golden, key, batch):
    arrays, manifest = golden
    prob = np.stack([object_probability(arrays[f"bin/{c}/sem_seg"]) for c in BINARY_CASES])
    labels = np.stack([arrays[f"bin/{c}/gt"] for c in BINARY_CASES])
    scores = metrics.avsbench(count(prob, labels), batch)
    assert round(scores["mIoU"], 4) == manifest[f"bin/{key}"]["mIoU"]
    assert round(scores["f_beta"], 4) == manifest[f"bin/{key}"]["f_score"]


@pytest.mark.parametrize(
    "case, prob, label",
    [
        ("pred_half_exact", 0.5, 1),  # a tie is background for IoU, positive at low thresholds
        ("empty_gt_empty_pred", 0.0, 0),
        ("empty_gt_full_pred", 1.0, 0),
        ("ones_ones", 1.0, 1),
        ("full_gt_empty_pred", 0.0, 1),  # threshold 0 makes everything positive
    ],
)
def test_edge_case(golden, case, prob, label):
    want = golden[1][f"edge/{case}"]
    shape = (1, 2, 8, 8)
    counts = count(np.full(shape, prob, np.float32), np.full(shape, label, np.uint8))
    scores = metrics.avsbench(counts, 1)
    assert scores["mIoU"] == pytest.approx(want["mask_iou"], abs=1e-6)
    assert scores["f_beta"] == pytest.approx(want["fmeasure"], abs=1e-6)


def semantic_counts(arrays, cases):
    counter = FrameCounter(num_classes=71)
    for case in cases:
        pred = arrays[f"sem/{case}/sem_seg"].astype(np.float32).argmax(axis=1)
        labels = arrays[f"sem/{case}/gt"]
        counter.add(pred[None], batch_of(labels[None], [case]))
    return counter.result()


@pytest.mark.parametrize("case", SEMANTIC_CASES)
def test_semantic_case(golden, case):
    arrays, manifest = golden
    counts = semantic_counts(arrays, [case])
    sums = metrics.semantic_sums(counts)
    np.testing.assert_allclose(sums["iou"], arrays[f"sem/{case}/iou_sum"], atol=1e-5)
    np.testing.assert_allclose(sums["f_beta"], arrays[f"sem/{case}/fscore_sum"], atol=1e-5)
    np.testing.assert_array_equal(sums["frames"], arrays[f"sem/{case}/cls_count"])
    scores = metrics.semantic(counts)
    assert round(scores["mIoU"], 4) == manifest[f"sem/{case}"]["alone"]["mIoU"]
    assert round(scores["f_beta"], 4) == manifest[f"sem/{case}"]["alone"]["f_score"]


def test_semantic_dataset(golden):
    arrays, manifest = golden
    want = manifest["sem/dataset_exact"]
    scores = metrics.semantic(semantic_counts(arrays, SEMANTIC_CASES))
    assert scores["mIoU"] == pytest.approx(want["mIoU"], abs=1e-6)
    assert scores["f_beta"] == pytest.approx(want["f_score"], abs=1e-6)


# ---- AVSBench's own evaluators, measured ----


@pytest.fixture(scope="module")
def avsbench_golden():
    meta = json.loads((GOLDEN / "golden_avs_metrics_meta.json").read_text())
    with np.load(GOLDEN / "golden_avs_metrics.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}, meta


AVSBENCH_BINARY = (
    "mixed5 empty_gt_all empty_gt_empty_pred empty_pred all_ones_both zero_logits_full_gt "
    "one_frame saturated batch10"
).split()
AVSBENCH_SEMANTIC = (
    "mixed_v2 perfect all_background_pred zero_logits_padded v1_padded_last5 wrong_classes "
    "no_overlap_one_class T20_two_videos"
).split()


def sigmoid(logits):
    return (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32)


@pytest.mark.parametrize("case", AVSBENCH_BINARY)
def test_avsbench_binary_case(avsbench_golden, case):
    arrays, meta = avsbench_golden
    want = meta["binary"][case]
    prob = sigmoid(arrays[f"binary/{case}/logits"])
    labels = arrays[f"binary/{case}/gt"].astype(np.uint8)
    scores = metrics.avsbench(count(prob[None], labels[None]), 1)
    assert scores["mIoU"] == pytest.approx(want["mask_iou"], abs=1e-6)
    assert scores["f_beta"] == pytest.approx(want["Fmeasure"], abs=1e-6)
    frames = count(prob[:, None], labels[:, None])  # each frame as a clip of its own
    iou = metrics.frame_iou(frames)
    np.testing.assert_allclose(iou, [w[0] for w in want["per_frame_[iou,F]"]], atol=1e-6)


@pytest.mark.parametrize("batch", [1, 2, 5, 10])
def test_avsbench_depends_on_the_batch_as_the_original_does(avsbench_golden, batch):
    """Its numbers of the same ten frames, one per clip, at four batch sizes."""
    arrays, meta = avsbench_golden
    prob = sigmoid(arrays["binary/batch10/logits"])[:, None]
    labels = arrays["binary/batch10/gt"].astype(np.uint8)[:, None]
    scores = metrics.avsbench(count(prob, labels), batch)
    want = meta["dataset_level_by_batch"][str(batch)]
    assert [scores["mIoU"], scores["f_beta"]] == pytest.approx(want, abs=1e-6)


def semantic_of(pred, labels, **fields):
    """FrameCounts of classes [B, T, S, S], 71 of them."""
    counter = FrameCounter(num_classes=71)
    counter.add(pred.astype(np.int32), batch_of(labels.astype(np.uint8), **fields))
    return counter.result()


@pytest.mark.parametrize("case", AVSBENCH_SEMANTIC)
def test_avsbench_semantic_case(avsbench_golden, case):
    arrays, meta = avsbench_golden
    want = meta["color"][case]
    pred, labels = arrays[f"color/{case}/argmax"], arrays[f"color/{case}/label"]
    counts = semantic_of(pred[None], labels[None])
    np.testing.assert_allclose(
        metrics.semantic_sums(counts)["iou"], arrays[f"color/{case}/ious"], atol=1e-5
    )
    scores = metrics.all_protocols(counts)
    for frames in ("real", "padded"):  # all of them exist
        plain, without, legacy = (
            scores[f"semantic(frames={frames}{name})"]
            for name in ("", ", without background", ", legacy_nobg")
        )
        assert plain["mIoU"] == pytest.approx(want["final_miou"], abs=1e-6)
        assert plain["f_beta"] == pytest.approx(want["final_fscore"], abs=1e-6)
        assert without["mIoU"] == pytest.approx(want["miou_excluding_class0"], abs=1e-6)
        assert legacy == pytest.approx(
            {
                "mIoU": want["final_miou_noBg_as_released([:-1])"],
                "f_beta": want["final_fscore_noBg_as_released([:-1])"],
            },
            abs=1e-6,
        )


def test_mean_over_the_classes_in_truth():
    labels = np.zeros((1, 2, 4, 4), np.uint8)
    labels[0, :, 2:] = 5
    pred = labels.copy()
    pred[0, 1, 0] = 9  # a class that is nowhere true
    scores = metrics.all_protocols(semantic_of(pred, labels))
    iou = {0: (1 + 4 / 8) / 2, 5: 1.0, 9: 0.0}
    for frames in ("real", "padded"):
        name = f"semantic(frames={frames}, classes in truth)"
        assert scores[name]["mIoU"] == pytest.approx((iou[0] + iou[5]) / 2)
        assert scores[f"semantic(frames={frames})"]["mIoU"] == pytest.approx((iou[0] + iou[5]) / 71)


def test_padded_frames_score_as_in_avsbench_whatever_the_model_says_there(avsbench_golden):
    """The original's number of a clip of five frames, padded to ten black ones."""
    arrays, meta = avsbench_golden
    want = meta["color"]["v1_padded_last5"]
    pred = arrays["color/v1_padded_last5/argmax"][None].copy()
    labels = arrays["color/v1_padded_last5/label"][None].copy()
    assert not labels[:, 5:].any()
    pred[:, 5:], labels[:, 5:] = 7, 255
    valid = np.arange(10)[None] < 5
    counts = semantic_of(pred, labels, valid=valid, supervised=valid)
    assert metrics.semantic(counts, "padded")["mIoU"] == pytest.approx(want["final_miou"], abs=1e-6)
    only_real = semantic_of(pred[:, :5], labels[:, :5])
    assert metrics.semantic(counts) == metrics.semantic(only_real)
    assert metrics.semantic(counts) != metrics.semantic(counts, "padded")


# ---- the definition, read directly ----


def avsbench_directly(prob, labels, batch):
    """The protocol's definition with plain loops over frames and thresholds."""
    ious, f_betas = [], []
    for first in range(0, len(prob), batch):
        p = prob[first : first + batch].reshape(-1, *prob.shape[2:])
        g = labels[first : first + batch].reshape(-1, *prob.shape[2:]) > 0
        frame_ious, curves = [], []
        for pf, gf in zip(p, g, strict=True):
            if gf.any():
                inter, union = ((pf > 0.5) & gf).sum(), ((pf > 0.5) | gf).sum()
                frame_ious.append(inter / union)
                curve = []
                for threshold in THRESHOLDS:
                    positive = pf >= threshold
                    tp = (positive & gf).sum()
                    if tp == 0:
                        curve.append(0.0)
                        continue
                    precision, recall = tp / positive.sum(), tp / gf.sum()
                    curve.append(1.3 * precision * recall / (0.3 * precision + recall))
                curves.append(curve)
            else:
                frame_ious.append((pf <= 0.5).mean())
        ious.append(np.mean(frame_ious))
        f_betas.append(np.max(np.mean(curves, axis=0)) if curves else 0.0)
    return np.mean(ious), np.mean(f_betas)


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_avsbench_is_its_definition(batch):
    prob, labels = random_clips()
    scores = metrics.avsbench(count(prob, labels), batch)
    iou, f_beta = avsbench_directly(prob, labels, batch)
    assert scores["mIoU"] == pytest.approx(iou, abs=1e-9)
    assert scores["f_beta"] == pytest.approx(f_beta, abs=1e-9)


def test_stream_is_one_batch_and_avsbench_depends_on_its_batch():
    prob, labels = random_clips()
    counts = count(prob, labels)
    iou, f_beta = avsbench_directly(prob, labels, batch=len(prob))
    assert metrics.stream(counts) == pytest.approx({"mIoU": iou, "f_beta": f_beta}, abs=1e-9)
    assert metrics.avsbench(counts, 1)["f_beta"] != metrics.avsbench(counts, 4)["f_beta"]


def test_dataset_is_a_ratio_of_sums():
    prob, labels = random_clips()
    scores = metrics.dataset(count(prob, labels))
    positive, g = prob > 0.5, labels > 0
    assert scores["mIoU"] == pytest.approx((positive & g).sum() / (positive | g).sum())
    best = 0.0
    for threshold in THRESHOLDS:
        tp, pp = ((prob >= threshold) & g).sum(), (prob >= threshold).sum()
        if tp:
            best = max(best, 1.3 * tp / (0.3 * g.sum() + pp))
    assert scores["f_beta"] == pytest.approx(best)


def cavp_directly(pred, labels, num_classes):
    """CAVP's meters: the confusion matrix of all known pixels, then one ratio per class."""
    known = labels != 255
    pairs = num_classes * labels[known].astype(int) + pred[known]
    matrix = np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
    ious, f_betas = [], []
    for k in range(num_classes):
        tp = matrix[k, k]
        fp, fn = matrix[:, k].sum() - tp, matrix[k].sum() - tp
        ious.append(tp / (tp + fp + fn + np.spacing(1)))
        if tp + fp + fn:
            f_betas.append(1.3 * tp / (1.3 * tp + 0.3 * fn + fp))
    return {"mIoU": np.mean(ious), "f_beta": np.mean(f_betas)}


def test_cavp_averages_over_background_and_object():
    prob, labels = random_clips()
    prob[0, 0, :2] = 0.5  # a tie is background
    labels[1, :, 3:5] = 255
    valid = np.ones(prob.shape[:2], bool)
    valid[3, 1:] = False
    counts = count(prob, labels, valid=valid)
    scores = metrics.cavp(counts)
    want = cavp_directly((prob > 0.5)[valid].astype(int), labels[valid], 2)
    assert scores == pytest.approx(want, abs=1e-12)
    # By hand: 4 of 6 true pixels found and 1 false one, of 100.
    prob, labels = np.zeros((2, 1, 1, 10, 10), np.float32)
    prob.ravel()[2:7], labels.ravel()[:6] = 0.9, 1
    scores = metrics.cavp(count(prob, labels.astype(np.uint8)))
    assert scores["mIoU"] == pytest.approx((4 / 7 + 93 / 96) / 2)
    assert scores["f_beta"] == pytest.approx(
        (5.2 / (5.2 + 0.6 + 1) + 120.9 / (120.9 + 0.3 + 2)) / 2
    )


def test_cavp_of_classes_that_never_occur():
    rng = np.random.default_rng(7)
    pred, labels = rng.choice([0, 3, 5, 70], (2, 4, 3, 8, 8))
    labels[labels == 5] = 0  # predicted, never true
    counts = semantic_of(pred, labels)
    want = cavp_directly(pred, labels, 71)
    assert metrics.all_protocols(counts)["cavp"] == pytest.approx(want, abs=1e-12)
    assert want["mIoU"] < 3 / 71 < want["f_beta"]


def test_davis_and_boundary_iou_on_a_drawing():
    """Two squares of 20 px, one of them moved right by 10: the vertical sides do not match."""
    labels = np.zeros((3, 1, 100, 100), np.uint8)
    labels[0, 0, 30:50, 30:50] = 1
    prob = np.zeros(labels.shape, np.float32)
    prob[0, 0, 30:50, 40:60] = 1
    prob[1, 0, 30:50, 40:60] = 1  # where nothing is; in the third clip neither is anything found
    counts = count(prob, labels)
    scores = metrics.davis(counts)
    assert scores["J"] == pytest.approx((200 / 600 + 0 + 1) / 3)
    # Either contour is the rim of 21 x 21 px. Of 80 pixels match, within 2 px: 11 of the top that
    # both share and 2 beyond, 2 of the side where it meets the top; and as many at the bottom.
    c = {name: array[0] for name, array in counts.counts.items()}
    assert c["contour_gt"] == c["contour_pred"] == 80
    assert c["contour_gt_matched"] == c["contour_pred_matched"] == 30
    precision = 30 / 80
    assert scores["f_boundary"] == pytest.approx((precision + 0 + 1) / 3)
    assert scores["J&F"] == pytest.approx((scores["J"] + scores["f_boundary"]) / 2)
    # Bands of 3 px: rings of 20^2 - 14^2 = 204 px that share two strips of 3 x 10 px.
    assert (c["band_inter"], c["band_union"]) == (2 * 3 * 10, 2 * 204 - 60)
    assert metrics.boundary_iou(counts)["boundary_iou"] == pytest.approx((60 / 348 + 0 + 1) / 3)


def test_davis_weighs_clips_alike():
    labels = np.zeros((2, 3, 12, 12), np.uint8)
    labels[:, :, 3:9, 3:9] = 1
    prob = labels.astype(np.float32)
    prob[0] = 0
    valid = np.array([[True] * 3, [True, False, False]])
    scores = metrics.davis(count(prob, labels, valid=valid))
    assert scores == pytest.approx({"J": 0.5, "f_boundary": 0.5, "J&F": 0.5})


# ---- independence of how the evaluation ran ----


def assert_same(a, b):
    for name in ("clip_id", "category", "frame_index", "valid"):
        np.testing.assert_array_equal(a[name], b[name])
    assert set(a.counts) == set(b.counts)
    for name in a.counts:
        np.testing.assert_array_equal(a.counts[name], b.counts[name])


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_counts_do_not_depend_on_the_loader_batch(batch):
    prob, labels = random_clips()
    whole, split = count(prob, labels), count(prob, labels, batch=batch)
    assert_same(whole, split)
    assert metrics.all_protocols(whole) == metrics.all_protocols(split)


def test_frames_without_ground_truth_are_in_no_row():
    prob, labels = random_clips()
    supervised = np.ones(prob.shape[:2], bool)
    supervised[:, 1:] = False
    counter = FrameCounter(num_classes=2, facts={"ground_truth": "random"})
    labels = np.where(supervised[..., None, None], labels, 255).astype(np.uint8)
    counter.add(prob, batch_of(labels, supervised=supervised))
    assert_same(counter.result(), count(prob[:, :1], labels[:, :1]))


def test_further_counts_are_kept():
    prob, labels = random_clips(num_clips=5)
    valid = np.ones(prob.shape[:2], bool)
    valid[3, 1:] = False
    more = {"moving": np.arange(valid.size).reshape(valid.shape) + 1}
    counter = FrameCounter(num_classes=2)
    counter.add(prob, batch_of(labels, valid=valid), more)
    counts = counter.result()
    np.testing.assert_array_equal(counts.counts["moving"], (more["moving"] * valid).ravel())
    nobody = FrameCounter(num_classes=2).result()
    assert_same(interleave([counts, nobody], 8), counts)
    assert len(interleave([nobody, nobody], 8).clip_id) == 0


def test_padded_clips_and_frames_change_nothing():
    prob, labels = random_clips()
    padded_prob = np.concatenate([prob, np.ones_like(prob[:2])])
    padded_labels = np.concatenate([labels, np.zeros_like(labels[:2])])
    padded_prob = np.concatenate([padded_prob, np.ones_like(padded_prob[:, :2])], axis=1)
    padded_labels = np.concatenate([padded_labels, np.zeros_like(padded_labels[:, :2])], axis=1)
    valid = np.zeros(padded_prob.shape[:2], bool)
    valid[: len(prob), : prob.shape[1]] = True
    ids = [f"clip{i}" for i in range(len(prob))] + ["", ""]
    padded = count(padded_prob, padded_labels, ids, valid)
    plain = count(prob, labels)
    assert_same(padded.scored(), plain)
    assert metrics.all_protocols(padded) == metrics.all_protocols(plain)


@pytest.mark.parametrize("num_processes, share", [(2, 1), (3, 1), (2, 2), (3, 2)])
def test_interleave_restores_dataset_order(num_processes, share):
    prob, labels = random_clips()
    ids = [f"clip{i}" for i in range(len(prob))]
    parts = []
    for process in range(num_processes):
        own = [i for i in range(len(prob)) if i // share % num_processes == process]
        parts.append(count(prob[own], labels[own], [ids[i] for i in own]))
    assert_same(interleave(parts, share), count(prob, labels, ids))


def test_save_and_load(tmp_path):
    prob, labels = random_clips()
    counts = count(prob, labels)
    counts.save(tmp_path / "counts.npz")
    loaded = FrameCounts.load(tmp_path / "counts.npz")
    assert_same(counts, loaded)
    assert loaded.facts == {"ground_truth": "random"}
    with np.load(tmp_path / "counts.npz") as file:
        older = {name: file[name] for name in file.files if name != "version"}
    np.savez(tmp_path / "older.npz", **older)
    with pytest.raises(ValueError, match="version 1, expected 2"):
        FrameCounts.load(tmp_path / "older.npz")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match="not a FrameCounts file.*lacks facts_json"):
        FrameCounts.load(tmp_path / "other.npz")


# ---- what must not pass ----


def test_unknown_pixels_are_in_no_binary_count():
    prob, labels = random_clips(num_clips=5)
    labels[:, :, :4] = 255
    cropped = count(prob[:, :, 4:], labels[:, :, 4:])
    assert_same(count(prob, labels), cropped)


def test_errors():
    prob, labels = random_clips(num_clips=5)
    with pytest.raises(ValueError, match="clip_id is in the table twice"):
        count(prob, labels, ["a", "b", "a", "c", "d"])
    with pytest.raises(ValueError, match="no valid frame"):
        metrics.stream(count(prob, labels, valid=np.zeros(prob.shape[:2], bool)))
    with pytest.raises(ValueError, match="no valid frame"):
        metrics.davis(count(prob, labels, [""] * 5))
    with pytest.raises(ValueError, match="diverge"):
        count(prob * np.float32("nan"), labels)
    with pytest.raises(TypeError, match="float32"):
        count(prob.astype(np.float64), labels)
    with pytest.raises(ValueError, match="class 4"):
        count(prob, labels + 3)
    with pytest.raises(ValueError, match="binary task"):
        metrics.semantic(count(prob, labels))
    with pytest.raises(ValueError, match="semantic task"):
        metrics.boundary_iou(semantic_of(np.zeros((1, 1, 4, 4), int), np.zeros((1, 1, 4, 4), int)))
    with pytest.raises(ValueError, match="'all'"):
        metrics.semantic(semantic_of(labels, labels), frames="all")
    with pytest.raises(ValueError, match="at least 1"):
        metrics.avsbench(count(prob, labels), 0)
