"""Scores of grounding: the measured numbers of the reference scripts, and brute force."""

import json

import numpy as np
import pytest

from avs_jax.results import moments, windows
from avs_jax.results.moments import HIGHLIGHT_LEVELS, MomentTable
from avs_jax.results.table import concatenate, interleave
from avs_jax.results.windows import MomentMeter, PostProcess, read_submission, write_submission
from avs_jax.spec import InputError
from avs_jax.tasks.ground import PROTOCOLS
from tests.conftest import GOLDEN


@pytest.fixture(scope="module")
def golden():
    folder = GOLDEN / "ground"
    with np.load(folder / "golden_moment_eval.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    return json.loads((folder / "golden_moment_eval.json").read_text()), arrays


def truth_row(line):
    """What MomentRows.truth gives for a line of an annotation file with scores."""
    ratings = np.zeros((int(line["duration"] / 2), 3))
    for clip, scores in zip(line["relevant_clip_ids"], line["saliency_scores"], strict=True):
        ratings[clip] = scores
    row = {name: str(line[name]) for name in ("qid", "vid", "query")}
    annotated = np.array(line["relevant_windows"], float).reshape(-1, 2)
    return row | {"duration": line["duration"], "windows": annotated, "ratings": ratings}


def score_lines(tmp_path, annotations, submission) -> MomentTable:
    path = tmp_path / "submission.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in submission))
    return read_submission(path, [truth_row(line) for line in annotations])


# ---- measured numbers ----


def test_every_query_scores_as_measured(golden, tmp_path):
    numbers, arrays = golden
    table = score_lines(
        tmp_path, numbers["moment"]["ground_truth"], numbers["moment"]["submission"]
    )
    assert table["qid"].tolist() == [str(qid) for qid in arrays["moment/qid"]]
    precisions, top = moments.window_scores(table)
    np.testing.assert_allclose(precisions, arrays["moment/ap"], atol=1e-7)
    np.testing.assert_allclose(top, arrays["moment/top1_iou"], atol=1e-7)
    for i, level in enumerate(("Fair", "Good", "VeryGood")):
        precisions, hits = moments.highlight_scores(table, level)
        np.testing.assert_allclose(precisions, arrays["moment/hl_ap"][:, i], atol=1e-7)
        np.testing.assert_array_equal(hits, arrays["moment/hl_hit"][:, i])


def assert_metrics(found, measured):
    """Every measured number, to the rounding of one that ends in 5; what was not measured, None."""
    for group, values in found.items():
        for name, value in values.items():
            expected = measured.get(group, {}).get(name)
            if isinstance(value, dict):
                assert_metrics({name: value}, measured.get(group, {}))
            elif expected is None:
                assert value is None, (group, name)
            else:
                assert value == pytest.approx(expected, abs=0.011), (group, name)


def qvhighlights_metrics(table: MomentTable) -> dict[str, dict]:
    """Everything that QVHighlights' script prints, under its names: percent, two decimals."""
    metrics = {}
    for length in moments.LENGTHS:
        precisions, top = moments.window_scores(moments.with_windows(table), length)
        recalls = {f"{t:g}": _percent(top >= t) for t in moments.THRESHOLDS}
        means = {
            f"{t:g}": _percent(p) for t, p in zip(moments.THRESHOLDS, precisions.T, strict=True)
        }
        metrics[length] = {"MR-mAP": means | {"average": _percent(precisions)}, "MR-R1": recalls}
    for level in HIGHLIGHT_LEVELS:
        precisions, hits = moments.highlight_scores(table, level)
        metrics[f"HL-min-{level}"] = {"HL-mAP": _percent(precisions), "HL-Hit1": _percent(hits)}
    recalls, means = metrics["full"]["MR-R1"], metrics["full"]["MR-mAP"]
    brief = {f"MR-full-R1@{t}": recalls[t] for t in ("0.5", "0.7")}
    brief |= {"MR-full-mAP": means["average"]}
    brief |= {f"MR-full-mAP@{t}": means[t] for t in ("0.5", "0.75")}
    brief |= {f"MR-{x}-mAP": metrics[x]["MR-mAP"]["average"] for x in ("long", "middle", "short")}
    for level in reversed(HIGHLIGHT_LEVELS):
        for name in ("mAP", "Hit1"):
            brief[f"HL-min-{level}-{name}"] = metrics[f"HL-min-{level}"][f"HL-{name}"]
    return {"brief": brief} | metrics


def _percent(values) -> float | None:
    return round(100 * float(np.mean(values)), 2) if np.size(values) else None


@pytest.mark.parametrize("case", ["", "_windows_only", "_saliency_only"])
def test_every_number_of_the_script(golden, tmp_path, case):
    numbers = golden[0]["moment"]
    dropped = {"_windows_only": "pred_saliency_scores", "_saliency_only": "pred_relevant_windows"}
    submission = [
        {name: value for name, value in line.items() if name != dropped.get(case)}
        for line in numbers["submission"]
    ]
    table = score_lines(tmp_path, numbers["ground_truth"], submission)
    measured = numbers[f"metrics{case}"]
    found = qvhighlights_metrics(table)
    assert_metrics(found, measured)
    assert set(measured) <= set(found)
    if not case:
        assert list(found["brief"].items()) == list(measured["brief"].items())


def test_half_of_the_queries(golden, tmp_path):
    numbers = golden[0]["moment"]
    half = numbers["submission"][:36]
    kept = {line["qid"] for line in half}
    annotations = [line for line in numbers["ground_truth"] if line["qid"] in kept]
    table = score_lines(tmp_path, annotations, half)
    measured = numbers["metrics_first_half_of_submission"]
    assert_metrics(qvhighlights_metrics(table), measured)


def test_three_queries_by_hand(tmp_path):
    """A set small enough to check on paper; the script gives these numbers too."""
    digits = [[int(d) for d in word] for word in "432 441 222 344 102".split()]
    first = {"qid": 1, "duration": 20, "relevant_windows": [[0, 6], [12, 16]]}
    first |= {"relevant_clip_ids": [0, 1, 2, 6, 7], "saliency_scores": digits}
    digits = [[int(d) for d in word] for word in "111 222 333 444 434 221 110".split()]
    second = {"qid": 2, "duration": 20, "relevant_windows": [[4, 18]]}
    second |= {"relevant_clip_ids": [2, 3, 4, 5, 6, 7, 8], "saliency_scores": digits}
    digits = [[int(d) for d in word] for word in "040 234 411".split()]
    third = {"qid": 3, "duration": 60, "relevant_windows": [[10, 50]]}
    third |= {"relevant_clip_ids": [5, 6, 7], "saliency_scores": digits}
    annotations = [line | {"query": "q", "vid": "v"} for line in (first, second, third)]
    predicted = [
        ([[0, 8, 0.9], [10, 16, 0.6], [0, 20, 0.1]], "9 8 3 1 0 2 7 4 .5 .1"),
        ([[0, 10, 0.7], [6, 18, 0.5]], "1 2 3 4 5 9 8 6 2 1"),
        ([[12, 44, 0.95], [0, 60, 0.9]], " ".join(map(str, range(30)))),
    ]
    submission = [
        {
            "qid": i + 1,
            "pred_relevant_windows": listed,
            "pred_saliency_scores": [float(word) for word in text.split()],
        }
        for i, (listed, text) in enumerate(predicted)
    ]
    metrics = qvhighlights_metrics(score_lines(tmp_path, annotations, submission))
    assert metrics["full"]["MR-R1"]["0.5"] == metrics["full"]["MR-R1"]["0.7"] == 66.67
    curve = [83.33] * 4 + [66.67, 66.67, 50.0, 16.67, 0.0, 0.0]
    assert list(metrics["full"]["MR-mAP"].values()) == [*curve, 53.33]
    lengths = [metrics["brief"][f"MR-{name}-mAP"] for name in ("short", "middle", "long")]
    assert lengths == [50.0, 40.0, 70.0]
    highlights = [metrics[f"HL-min-{level}"] for level in ("Fair", "Good", "VeryGood")]
    assert [found["HL-mAP"] for found in highlights] == [65.06, 58.32, 56.95]
    assert [found["HL-Hit1"] for found in highlights] == [66.67] * 3


def test_tvsum(golden):
    numbers, arrays = golden
    cases = zip(arrays["tvsum/label"], arrays["tvsum/pred"], arrays["tvsum/length"], strict=True)
    rows = []
    for i, (label, predicted, length) in enumerate(cases):
        found = moments.top_clips_ap(label[:length], predicted)
        np.testing.assert_allclose(found, numbers["tvsum"]["annotator"][i], atol=5.1e-6)
        assert found.mean() == pytest.approx(numbers["tvsum"]["video"][i], abs=5.1e-6)
        rows.append(row_of(i, ratings=label[:length], pred_saliency=predicted))
    mean = moments.tvsum(MomentTable.from_rows(rows, {}))
    assert mean == {"mAP": pytest.approx(numbers["tvsum"]["all"], abs=5.1e-6)}
    fewer = numbers["tvsum"]["fewer_predictions"]
    video, count = fewer["video"], fewer["predictions"]
    label = arrays["tvsum/label"][video, : arrays["tvsum/length"][video]]
    found = moments.top_clips_ap(label, arrays["tvsum/pred"][video, :count])
    assert found.mean() == pytest.approx(fewer["mAP"], abs=5.1e-6)


def test_tvsum_of_hits_1_0_1_0_0():
    ratings = np.array([[5.0], [1], [5], [1], [1], [1]])
    predicted = np.array([6.0, 5, 4, 3, 2, 1])
    assert moments.top_clips_ap(ratings, predicted)[0] == pytest.approx(0.791667, abs=1e-6)
    assert moments.top_clips_ap(np.ones((6, 1)), predicted)[0] == 0  # nothing exceeds the median


def test_decoding_and_overlaps(golden):
    numbers, arrays = golden
    measured = numbers["decode"]
    for i, line in enumerate(measured["predictions"]):
        logits, spans = arrays["decode/pred_logits"][i], arrays["decode/pred_spans"][i]
        found = PostProcess().windows(logits, spans, measured["duration"][i])
        assert found.tolist() == line["pred_relevant_windows"]
        mask = arrays["decode/video_mask"][i].astype(bool)
        saliency = PostProcess().saliency(arrays["decode/saliency_scores"][i][mask])
        assert saliency.tolist() == line["pred_saliency_scores"]
        for iou, kept in measured["nms"].items():
            post_process = PostProcess(nms_iou=float(iou))
            assert post_process.windows(logits, spans, measured["duration"][i]).tolist() == kept[i]


def test_switches_of_the_post_processing():
    logits = np.array([[0.0, 0.0], [2.0, 0.0]])
    spans = np.array([[0.5, 1.2], [0.25, 0.15]])
    plain = PostProcess(max_seconds=None, round_seconds=None, half_saliency=False)
    np.testing.assert_allclose(
        plain.windows(logits, spans, 20), [[3.5, 6.5, 0.8808], [-2, 22, 0.5]], atol=1e-6
    )
    clipped = PostProcess(max_seconds=20.0, round_seconds=1.0)
    found = clipped.windows(logits, spans, 20)[:, :2]
    assert found.tolist() == [[4, 6], [0, 20]]  # halves to even
    scores = np.array([0.1, 7.0], np.float32)
    assert plain.saliency(scores).tolist() == [np.float32(0.1), 7]
    assert PostProcess().saliency(scores)[0] == np.float16(0.1)


# ---- brute force ----


def naive_iou(a, b):
    inter = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = (a[1] - a[0]) + (b[1] - b[0]) - inter
    return inter / union if union > 0 else 0.0


def naive_window_ap(predicted, truth, threshold):
    ranked = sorted(predicted[:10], key=lambda window: -window[2])
    taken, points, hits = set(), [(0.0, 1.0)], 0
    for rank, window in enumerate(ranked, start=1):
        best = None
        for j in reversed(range(len(truth))):
            iou = naive_iou(window, truth[j])
            if j not in taken and iou >= threshold and (best is None or iou > best[0]):
                best = (iou, j)
        if best:
            taken.add(best[1])
            hits += 1
        points.append((hits / len(truth), hits / rank))
    area = 0.0
    for k in range(1, len(points)):
        best_after = max(p for _, p in points[k:])
        area += (points[k][0] - points[k - 1][0]) * best_after
    return area


def naive_ranking_ap(positive, scores):
    if all(positive) or not any(positive):
        return float(all(positive))
    points = []
    for threshold in sorted(set(scores), reverse=True):
        chosen = [p for p, s in zip(positive, scores, strict=True) if s >= threshold]
        points.append((sum(chosen) / sum(positive), sum(chosen) / len(chosen)))
    changes, recall = [], 0.0
    for k, (r, _) in enumerate(points):
        if r != recall:
            changes.append(max(p for _, p in points[k:]))
        recall = r
    return sum(changes) / len(changes)


def row_of(qid, **values):
    empty = {"windows": np.zeros((0, 2)), "ratings": np.zeros((0, 3))}
    empty |= {"pred_windows": np.zeros((0, 3)), "pred_saliency": np.zeros(0)}
    names = {"qid": str(qid), "vid": f"v{qid}", "query": "a sound", "duration": 40.0}
    return names | empty | values


def random_row(rng, qid):
    """Few distinct numbers, so that ties, duplicates and empty windows are frequent."""

    def listed(count):
        return np.sort(rng.integers(0, 21, (count, 2)) * 2.0, axis=1)

    num_clips = int(rng.integers(1, 12))
    predicted = listed(rng.integers(0, 14))
    scores = rng.integers(0, 6, (len(predicted), 1)) / 5
    truth = listed(rng.integers(1, 5))
    truth[:, 1] += 2  # an annotated window is never empty
    return row_of(
        qid,
        windows=truth,
        ratings=rng.integers(0, 5, (num_clips, 3)) * 1.0,
        pred_windows=np.concatenate([predicted, scores], axis=1),
        pred_saliency=rng.integers(0, 5, int(rng.integers(1, 14))) / 4,
    )


def test_200_random_queries_by_brute_force():
    rng = np.random.default_rng(15)
    rows = [random_row(rng, i) for i in range(200)]
    table = MomentTable.from_rows(rows, {})
    precisions, top = moments.window_scores(table)
    for row, found, first in zip(rows, precisions, top, strict=True):
        predicted, truth = row["pred_windows"].tolist(), row["windows"].tolist()
        expected = [naive_window_ap(predicted, truth, t) for t in moments.THRESHOLDS]
        np.testing.assert_allclose(found, expected, atol=1e-12)
        expected = max(naive_iou(p, w) for p in predicted[:1] or [[0, 0]] for w in truth)
        assert first == pytest.approx(expected, abs=1e-12)
    for level, lowest in HIGHLIGHT_LEVELS.items():
        precisions, hits = moments.highlight_scores(table, level)
        for row, found, hit in zip(rows, precisions, hits, strict=True):
            saliency = row["pred_saliency"].tolist()
            ratings = row["ratings"].tolist()
            padded = (saliency + [0.0] * len(ratings))[: len(ratings)]
            for a in range(3):
                positive = [scores[a] >= lowest for scores in ratings]
                assert found[a] == pytest.approx(naive_ranking_ap(positive, padded), abs=1e-12)
            best = saliency.index(max(saliency))
            assert hit == (best < len(ratings) and max(ratings[best]) >= lowest)


# ---- tables, batches, processes ----


def random_batches(sizes, num_queries=7):
    """The same seven queries in batches of these sizes, the last filled up with empty rows."""
    rng = np.random.default_rng(3)
    scores = {
        "pred_logits": rng.normal(size=(num_queries, 10, 2)).astype(np.float32),
        "pred_spans": rng.uniform(size=(num_queries, 10, 2)).astype(np.float32),
        "saliency_scores": rng.normal(size=(num_queries, 12)).astype(np.float32),
    }
    rows = [random_row(rng, i) for i in range(num_queries)]
    lengths = rng.integers(3, 13, num_queries)
    batch = {name: [row[name] for row in rows] for name in windows.TRUTH_COLUMNS}
    batch["video_mask"] = np.arange(12)[None, :] < lengths[:, None]
    start = 0
    for size in sizes:
        index = [i if i < num_queries else 0 for i in range(start, start + size)]
        taken = {name: [batch[name][i] for i in index] for name in windows.TRUTH_COLUMNS}
        taken["qid"] = [
            batch["qid"][i] if i < num_queries else "" for i in range(start, start + size)
        ]
        taken["video_mask"] = batch["video_mask"][index]
        yield {name: array[index] for name, array in scores.items()}, taken
        start += size


def collect(batches):
    meter = MomentMeter(PostProcess(max_seconds=40.0))
    for scores, batch in batches:
        meter.add(scores, batch)
    return meter.table()


def test_batches_and_processes_change_nothing(tmp_path):
    whole = collect(random_batches([7]))
    assert len(whole) == 7 and np.isnan(whole["pred_saliency"]).any()
    single = collect(random_batches([1] * 7))
    parts = [collect(list(random_batches([2] * 4))[i::2]) for i in range(2)]
    for other in (single, interleave(parts, share=2, by="qid")):
        for name, column in whole.columns.items():
            np.testing.assert_array_equal(other[name], column, err_msg=name)
    numbers = PROTOCOLS["qvhighlights"](whole)
    wider = concatenate(
        [whole, MomentTable.from_rows([random_row(np.random.default_rng(9), 99)], {})]
    )
    assert PROTOCOLS["qvhighlights"](wider.take(slice(0, 7))) == numbers
    whole.save(tmp_path / "table.npz")
    loaded = MomentTable.load(tmp_path / "table.npz")
    assert PROTOCOLS["qvhighlights"](loaded) == numbers


def test_diverged_predictions_are_an_error():
    (scores, batch), *_ = random_batches([7])
    scores["saliency_scores"][2, 0] = np.nan
    with pytest.raises(ValueError, match="query 2.*NaN"):
        MomentMeter(PostProcess()).add(scores, batch)


def test_groups_without_a_query_have_no_number():
    row = row_of(1, windows=np.array([[0.0, 40]]), pred_windows=np.array([[0.0, 40, 1]]))
    table = MomentTable.from_rows([row, row_of(2)], {})
    scores = PROTOCOLS["qvhighlights"](table)
    assert set(scores["moments"].values()) == {1.0} == set(scores["moments(long)"].values())
    for name in ("moments(short)", "moments(middle)", "highlights(VeryGood)"):
        assert set(scores[name].values()) == {None}
    assert moments.tvsum(table) == {"mAP": None}
    assert qvhighlights_metrics(table)["short"]["MR-mAP"]["average"] is None
    json.dumps(qvhighlights_metrics(table), allow_nan=False)
    nothing = MomentTable.from_rows([], {})
    assert set(moments.moments(nothing).values()) == {None}


def test_a_query_without_prediction_scores_0():
    rows = [row_of(i, windows=np.array([[0.0, 40]])) for i in range(2)]
    rows[0]["pred_windows"] = np.array([[0.0, 40, 1]])
    assert set(moments.moments(MomentTable.from_rows(rows, {})).values()) == {0.5}


def test_a_domain_without_predictions_scores_0_unless_no_query_has_one():
    rows = [row_of(i, windows=np.array([[0.0, 40]]), domain=d) for i, d in enumerate("aabb")]
    rows[0]["pred_windows"] = np.array([[0.0, 40, 1]])
    found = PROTOCOLS["qvhighlights"](MomentTable.from_rows(rows, {}))
    assert found["moments(domain a)"]["R1@0.5"] == 0.5 and found["moments"]["R1@0.5"] == 0.25
    assert set(found["moments(domain b)"].values()) == {0.0}
    rows[0] |= {"pred_windows": np.zeros((0, 3))}
    found = PROTOCOLS["qvhighlights"](MomentTable.from_rows(rows, {}))
    for name in ("moments", "moments(long)", "moments(domain a)", "moments(domain b)"):
        assert set(found[name].values()) == {None}


# ---- submissions ----


def test_a_submission_round_trips(tmp_path):
    table = collect(random_batches([7]))
    write_submission(table, tmp_path / "a.jsonl")
    first = json.loads((tmp_path / "a.jsonl").read_text().splitlines()[0])
    assert first["qid"] == 0 and first["vid"] == "v0" and first["query"] == "a sound"
    truth = [{name: row[name] for name in windows.TRUTH_COLUMNS} for row in table.rows()]
    again = read_submission(tmp_path / "a.jsonl", truth)
    for name, column in table.columns.items():
        np.testing.assert_array_equal(again[name], column, err_msg=name)


GOOD = {"qid": 1, "pred_relevant_windows": [[0, 2, 0.5]], "pred_saliency_scores": [0.1]}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([GOOD], "1 queries are missing, such as qid 2"),
        ([GOOD, GOOD | {"qid": 2}, GOOD | {"qid": "x"}], "1 queries are not in the split.*qid x"),
        ([GOOD, GOOD, GOOD | {"qid": 2}], "line 2: qid 1 is listed twice"),
        (
            [GOOD, GOOD | {"qid": 2, "pred_relevant_windows": [[3, 1, 0.5]]}],
            "expected .start, end >= start, score",
        ),
        (
            [GOOD, GOOD | {"qid": 2, "pred_relevant_windows": [[0, 1]]}],
            "expected .start, end >= start, s",
        ),
        ([GOOD, GOOD | {"qid": 2, "pred_relevant_windows": 3}], "pred_relevant_windows of qid 2"),
        ([GOOD, GOOD | {"qid": 2, "pred_saliency_scores": [float("nan")]}], "finite numbers"),
        ([GOOD, GOOD | {"qid": 2, "pred_saliency_scores": []}], "finite numbers"),
        ([GOOD, {"qid": 2, "pred_relevant_windows": []}], "1 queries lack pred_saliency_scores"),
        ([GOOD, {"vid": "v"}], "line 2: expected an object with a qid"),
        ([GOOD, [1]], "line 2: expected an object with a qid"),
    ],
)
def test_a_submission_that_cannot_be_scored(tmp_path, lines, message):
    path = tmp_path / "bad.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    truth = [{n: row_of(qid)[n] for n in windows.TRUTH_COLUMNS} for qid in (1, 2)]
    with pytest.raises(InputError, match=message):
        read_submission(path, truth)


def test_blank_lines_and_line_separators_in_texts(tmp_path):
    line = json.dumps(GOOD | {"query": "a\u2028b"}, ensure_ascii=False)
    (tmp_path / "a.jsonl").write_text(f"{line}\r\n\n")
    table = read_submission(tmp_path / "a.jsonl", [row_of(1)])
    assert table["pred_saliency"].tolist() == [[0.1]]


def test_a_file_that_is_no_submission(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text("{")
    with pytest.raises(InputError, match="line 1: not JSON"):
        read_submission(path, [])
    with pytest.raises(InputError, match="unreadable submission"):
        read_submission(tmp_path / "none.jsonl", [])
