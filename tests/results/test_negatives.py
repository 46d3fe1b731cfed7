"""Numbers of the negative-audio evaluation, on counts small enough to do by hand."""

import json

import numpy as np
import pytest

from avs_jax.results import metrics, negatives, report, statistics
from avs_jax.results.counts import FrameCounter, FrameCounts
from avs_jax.results.negative_report import CONDITIONS, sections
from avs_jax.results.negatives import g_score, summarize
from avs_jax.task import Summary

SIZE = 10  # px; a frame has 100 pixels
FACTS = {"manifest_sha256": "0" * 64, "moving_threshold": 0.2, "task": "binary"}


def frame(gt, found, off, moving=50, unknown=0):
    """One frame: pred finds `found` of `gt` object pixels and marks `off` others.

    The first `moving` pixels move: the object comes first, so it moves.
    """
    labels, pred = np.zeros((2, SIZE * SIZE))
    labels[:gt], pred[:found] = 1, 0.9
    if off:
        pred[-off - unknown : SIZE * SIZE - unknown] = 0.8
    if unknown:
        labels[-unknown:] = 255
    return (
        pred.astype(np.float32).reshape(SIZE, SIZE),
        labels.astype(np.uint8).reshape(SIZE, SIZE),
        (np.arange(SIZE * SIZE) < moving).reshape(SIZE, SIZE),
    )


def count(clips, condition="true_audio", num_classes=2, batch=None):
    """FrameCounts of {clip id: [frame, ...]}, fed `batch` clips at a time."""
    counter = FrameCounter(num_classes, {"audio": condition})
    ids = list(clips)
    for i in range(0, len(ids), batch or len(ids)):
        some = ids[i : i + (batch or len(ids))]
        pred, labels, moving = (
            np.stack([[f[k] for f in clips[clip]] for clip in some]) for k in range(3)
        )
        more = negatives.count_motion(pred, labels, moving)
        valid = np.ones(pred.shape[:2], bool)
        counter.add(pred, a_batch(labels, valid, some), more)
    return counter.result()


def a_batch(labels, valid, clip_ids):
    """The fields of a batch that counting reads."""
    return {
        "labels": labels,
        "valid": valid,
        "supervised": valid,
        "frame_index": np.broadcast_to(np.arange(valid.shape[1]), valid.shape),
        "clip_id": clip_ids,
        "category": ["dog"] * len(clip_ids),
    }


def random_clips(seed, num_clips=12):
    rng = np.random.default_rng(seed)
    return {
        f"clip{i:02d}": [
            frame(20, int(rng.integers(21)), int(rng.integers(30)), moving=40) for _ in range(2)
        ]
        for i in range(num_clips)
    }


def test_g_of_a_model_that_ignores_the_sound_is_the_published_number():
    assert round(100 * float(g_score(0.862, 0.862)), 2) == 23.79
    assert g_score(1.0, 0.0) == 1 and g_score(0.0, 0.5) == 0 and g_score(0.0, 1.0) == 0
    np.testing.assert_allclose(g_score([0.8, 0.5], [0.2, 0.5]), [0.8, 0.5])
    assert np.isnan(g_score([np.nan, 0.5], [0.5, np.nan])).all()


def test_counts_of_moving_and_static_pixels():
    pred, labels, moving = (x[None, None] for x in frame(20, 10, 5, moving=30, unknown=4))
    counts = {k: int(v[0, 0]) for k, v in negatives.count_motion(pred, labels, moving).items()}
    assert counts == {
        "moving_pixels": 30, "moving_pred": 10, "moving_gt": 20, "moving_inter": 10,
        "static_pixels": 66, "static_pred": 5, "static_gt": 0, "static_inter": 0,
    }  # fmt: skip
    # Classes: everything but background is predicted.
    classes = np.where(pred > 0.5, 7, 0).astype(np.int32)
    as_classes = negatives.count_motion(classes, labels * (labels == 255) + 3 * labels, moving)
    assert int(as_classes["moving_pred"][0, 0]) == 10
    half = np.full((1, 1, SIZE, SIZE), 0.5, np.float32)
    assert negatives.count_motion(half, labels, moving)["moving_pred"] == 0


@pytest.fixture(scope="module")
def by_hand():
    """Two clips of two frames; one frame has no object."""
    true = {
        "a": [frame(20, 20, 0), frame(20, 10, 0)],  # IoU 1, 1/2
        "b": [frame(40, 40, 10), frame(0, 0, 5)],  # IoU 4/5, and no object
    }
    silence = {
        "a": [frame(20, 0, 0), frame(20, 5, 5)],  # 0, 5/25
        "b": [frame(40, 20, 0), frame(0, 0, 0)],  # 1/2
    }
    noise = {clip: [frame(20 if clip == "a" else 40, 0, 0)] * 2 for clip in "ab"}
    noise["b"][1] = frame(0, 0, 60)
    noise = {clip: list(frames) for clip, frames in noise.items()}
    offscreen = {"a": [frame(20, 20, 80), frame(20, 20, 0)]}  # 1/5, 1; clip b has none
    clips = {
        "true_audio": true,
        "silence_zeros": silence,
        "silence_dither": true,
        "noise_white": noise,
        "offscreen": offscreen,
        "zero_flow": silence,
    }
    counts = {name: count(c, name) for name, c in clips.items()}
    return summarize(counts, num_resamples=50) | {"facts": FACTS}


def test_scores_by_hand(by_hand):
    c = by_hand["conditions"]

    def value(condition, name):
        return c[condition][name]["value"]

    assert by_hand["clips"] == 2 and by_hand["frames"] == 3
    assert by_hand["moving_share"] == 0.5
    assert value("true_audio", "mIoU") == pytest.approx((1 + 0.5 + 0.8) / 3)
    assert value("silence_zeros", "mIoU") == pytest.approx((0 + 0.2 + 0.5) / 3)
    assert value("silence_zeros", "gap_mIoU") == pytest.approx((2.3 - 0.7) / 3)
    assert value("silence_dither", "gap_mIoU") == 0
    # Off-screen there is only clip a, and its P is that of clip a.
    assert c["offscreen"]["clips"] == 1
    assert value("offscreen", "gap_mIoU") == pytest.approx(0.75 - 0.6)
    # 0 + 10 + 20 + 0 of four frames' 100 pixels.
    assert value("silence_zeros", "FPR") == pytest.approx(30 / 400)
    assert value("silence_zeros", "FPR_moving") == pytest.approx(25 / 200)
    assert value("silence_zeros", "FPR_static") == pytest.approx(5 / 200)
    assert value("noise_white", "FPR_moving") == pytest.approx(10 / 200)
    assert value("silence_zeros", "frac_near_empty") == 0.5
    assert value("noise_white", "frac_near_empty") == 0.75
    # Outside the masks: 200 - 80 moving pixels, 200 static ones.
    assert value("true_audio", "fpr_outside_moving") == 0
    assert value("true_audio", "fpr_outside_static") == pytest.approx(15 / 200)
    assert value("noise_white", "fpr_outside_moving") == pytest.approx(10 / 120)
    # Everything marked: precision 0.2, 0.2 and 0.4, recall 1.
    floor = np.mean([1.3 * p / (0.3 * p + 1) for p in (0.2, 0.2, 0.4)])
    assert by_hand["floor_f_beta"]["value"] == pytest.approx(floor)


def test_f_beta_is_that_of_the_stream_where_every_frame_has_an_object():
    counts = count(random_clips(0))
    numbers = summarize({"true_audio": counts}, num_resamples=5)
    stream = metrics.stream(counts)
    for name in ("mIoU", "f_beta"):
        found = numbers["conditions"]["true_audio"][name]["value"]
        assert found == pytest.approx(stream[name], abs=1e-12)
    assert numbers["summary"] == {} and numbers["types"] == {}


def test_summary_by_hand(by_hand):
    """Off-screen there is only clip a, so all numbers are those of clip a."""
    c = by_hand["conditions"]
    kinds = ((0.1 + 0.75) / 2, 0, 0.6)  # silence zeros and dither, noise, off-screen
    assert list(by_hand["summary"]) == ["published"]  # shift was not run
    each = by_hand["summary"]["published"]
    positive, negative = 0.75, np.mean(kinds)
    assert each["clips"] == 1
    assert each["types"] == ["silence", "noise", "offscreen"]
    assert each["N-mIoU"]["value"] == pytest.approx(negative)
    want = 2 * positive * (1 - negative) / (positive + 1 - negative)
    assert each["G-mIoU"]["value"] == pytest.approx(want)
    assert each["audio_blind_G-mIoU"]["value"] == pytest.approx(2 * positive * (1 - positive))
    rates = [(10 / 200 + 30 / 200) / 2, 0, 120 / 200]
    assert each["G-FPR"]["value"] == pytest.approx(np.mean(rates))
    silence = (c["silence_zeros"]["mIoU"]["value"] + c["silence_dither"]["mIoU"]["value"]) / 2
    gap = by_hand["types"]["silence"]["gap_mIoU"]["value"]
    assert gap == pytest.approx(c["true_audio"]["mIoU"]["value"] - silence)


def test_a_model_that_ignores_the_sound_scores_as_one_where_conditions_lack_clips():
    every = random_clips(3)
    counts = dict.fromkeys(("true_audio", "silence_zeros", "noise_white"), count(every))
    hardest = sorted(every)[::2]
    counts["offscreen"] = count({clip: every[clip] for clip in hardest})
    counts["shift"] = count({clip: every[clip] for clip in hardest[1:]})
    summary = summarize(counts, num_resamples=20)["summary"]
    assert {name: each["clips"] for name, each in summary.items()} == {"published": 6, "all": 5}
    for each in summary.values():
        for name in ("G-mIoU", "G-f_beta"):
            assert each[name] == pytest.approx(each[f"audio_blind_{name}"])


def test_g_is_over_the_published_types_and_over_all():
    true, other = count(random_clips(1)), count(random_clips(2))
    names = ("silence_zeros", "noise_white", "noise_pink", "offscreen", "shift")
    counts = {"true_audio": true, **dict.fromkeys(names, other), "shift": true}
    numbers = summarize(counts, num_resamples=10)
    summary = numbers["summary"]
    assert summary["published"]["types"] == ["silence", "noise", "offscreen"]
    assert summary["all"]["types"] == ["silence", "noise", "offscreen", "shift"]
    high, low = (numbers["conditions"][c]["mIoU"]["value"] for c in ("shift", "offscreen"))
    assert summary["published"]["N-mIoU"]["value"] == pytest.approx(low)
    assert summary["all"]["N-mIoU"]["value"] == pytest.approx((3 * low + high) / 4)
    only = summarize({"true_audio": true, "shift": other}, num_resamples=10)["summary"]
    assert list(only) == ["all"]


# ---- intervals ----


def test_intervals_agree_with_resampling_one_by_one():
    true, other = random_clips(3), random_clips(4)
    counts = {"true_audio": count(true), "silence_zeros": count(other)}
    numbers = summarize(counts, num_resamples=200, seed=5)
    weights = statistics.resample_weights(len(true), 200, 5)
    assert weights.shape == (201, 12) and np.all(weights.sum(axis=1) == 12)
    gaps, curves = [], []
    for row in weights[1:]:
        chosen = np.repeat(np.arange(12), row.astype(int))
        means = []
        for each in counts.values():
            rows = np.concatenate([np.arange(2 * i, 2 * i + 2) for i in chosen])
            scores = metrics.frame_iou(each.take(rows))
            means.append(scores.mean())
            picked = each.take(rows).counts
            curve = metrics.f_beta_curves(picked["tp"], picked["pp"], picked["gt"])
            curves.append(curve.mean(axis=0).max())
        gaps.append(means[0] - means[1])
    found = numbers["conditions"]["silence_zeros"]["gap_mIoU"]
    np.testing.assert_allclose(
        (found["low"], found["high"]), np.quantile(gaps, (0.025, 0.975)), atol=1e-12
    )
    found = numbers["conditions"]["true_audio"]["f_beta"]
    want = np.quantile(curves[::2], (0.025, 0.975))
    np.testing.assert_allclose((found["low"], found["high"]), want, atol=1e-12)
    assert found["low"] < found["value"] < found["high"]


def test_numbers_depend_on_neither_batches_nor_the_order_of_conditions():
    clips = {"true_audio": random_clips(5), "offscreen": random_clips(6)}
    whole = summarize({name: count(c, name) for name, c in clips.items()}, num_resamples=20)
    parts = {name: count(c, name, batch=5) for name, c in reversed(clips.items())}
    again = summarize(parts, num_resamples=20)
    assert again["conditions"] == whole["conditions"] and again["types"] == whole["types"]
    other_seed = summarize(parts, num_resamples=20, seed=1)
    assert other_seed["conditions"] != whole["conditions"]


def test_what_is_not_defined_is_none():
    still = {"a": [frame(20, 20, 0, moving=0)], "b": [frame(20, 0, 0, moving=0)]}
    numbers = summarize({"true_audio": count(still)}, num_resamples=10)
    moving = numbers["conditions"]["true_audio"]["FPR_moving"]
    assert moving == {"value": None, "low": None, "high": None}
    ((_, rows, _),) = sections(numbers | {"facts": FACTS})
    assert rows[1][rows[0].index("FPR moving %")] == "–"


def test_g_is_not_defined_without_an_object_and_not_0_in_resamples_without_a_shared_clip():
    empty = count({"a": [frame(0, 0, 5)], "b": [frame(0, 0, 0)]})
    names = ("true_audio", "silence_zeros", "noise_white", "offscreen")
    numbers = summarize(dict.fromkeys(names, empty), num_resamples=10) | {"facts": FACTS}
    nothing = {"value": None, "low": None, "high": None}
    assert numbers["summary"]["published"]["G-mIoU"] == nothing
    _, (_, rows, _), _ = sections(numbers)
    assert rows[1][rows[0].index("G-mIoU %")] == "–"
    every = {clip: [frame(20, 10, 0)] for clip in "abcd"}
    counts = dict.fromkeys(names[:-1], count(every)) | {"offscreen": count({"a": every["a"]})}
    found = summarize(counts, num_resamples=50)["summary"]["published"]["G-mIoU"]
    assert found["low"] == pytest.approx(found["value"])  # a third of the resamples lack clip a


# ---- semantic task ----


def classes(gt, pred):
    """A frame of 100 pixels whose first ones are object: [(class, pixels), ...] twice."""

    def fill(areas):
        return np.concatenate([np.full(n, c) for c, n in areas]).reshape(SIZE, SIZE)

    moving = np.zeros((SIZE, SIZE), bool)
    moving[:5] = True
    return fill(pred).astype(np.int32), fill(gt).astype(np.uint8), moving


def test_semantic_scores_are_over_the_classes_of_the_ground_truth():
    truth = [(1, 20), (0, 80)], [(2, 40), (0, 60)]
    true = {
        "a": [classes(truth[0], [(1, 20), (0, 80)])],
        "b": [classes(truth[1], [(2, 20), (0, 80)])],
    }
    false = {
        "a": [classes(truth[0], [(2, 10), (3, 10), (0, 80)])],
        "b": [classes(truth[1], [(2, 40), (0, 60)])],
    }
    counts = {
        "true_audio": count(true, num_classes=5),
        "silence_zeros": count(false, num_classes=5),
    }
    numbers = summarize(counts, num_resamples=20)
    c = numbers["conditions"]
    assert c["true_audio"]["mIoU"]["value"] == pytest.approx((1 + 0.5) / 2)
    # Class 1 is missed; class 2 is right in one of the two frames it is in; class 3 is none of the
    # ground truth's.
    assert c["silence_zeros"]["mIoU"]["value"] == pytest.approx((0 + 0.5) / 2)
    assert c["silence_zeros"]["f_beta"]["value"] == pytest.approx((0 + 0.5) / 2)
    assert c["silence_zeros"]["FPR"]["value"] == pytest.approx(60 / 200)
    assert c["silence_zeros"]["FPR_moving"]["value"] == pytest.approx(60 / 100)
    assert numbers["floor_f_beta"]["value"] is None
    _, _, legend = sections(numbers | {"facts": FACTS | {"task": "semantic"}})[0]
    assert "other than background" in " ".join(legend)
    assert "f_beta cannot fall below" not in " ".join(legend)


# ---- files and the report ----


def test_the_numbers_follow_from_the_files_alone(tmp_path):
    counts = {name: count(random_clips(i), name) for i, name in enumerate(("true_audio", "shift"))}
    read = {}
    for name, table in counts.items():
        table.save(tmp_path / f"{name}.npz")
        read[name] = FrameCounts.load(tmp_path / f"{name}.npz")
    assert summarize(read, num_resamples=20) == summarize(counts, num_resamples=20)


def test_counts_that_do_not_belong_together_are_refused():
    true = count(random_clips(0))
    with pytest.raises(ValueError, match="no counts of true_audio"):
        summarize({"shift": true})
    with pytest.raises(ValueError, match="'clip04'.*not among those of true_audio"):
        summarize({"true_audio": true.take(slice(0, 8)), "shift": true})
    plain = FrameCounter(2)
    pred, labels, _ = frame(20, 20, 0)
    plain.add(pred[None, None], a_batch(labels[None, None], np.ones((1, 1), bool), ["a"]))
    with pytest.raises(ValueError, match="moving_pixels"):
        summarize({"true_audio": plain.result()})


def test_the_tables_hold_the_numbers(by_hand):
    parts = {heading: (rows, " ".join(legend)) for heading, rows, legend in sections(by_hand)}
    assert list(parts) == ["False sounds", "Together", "Gap by type", "False motion"]
    for rows, _ in parts.values():
        assert len({len(row) for row in rows}) == 1

    def cell(heading, row, column):
        rows, _ = parts[heading]
        return next(r for r in rows if r[0] == row)[rows[0].index(column)]

    mean = f"{100 * (0 + 0.2 + 0.5) / 3:.2f} ["
    assert cell("False sounds", "silence zeros", "mIoU %").startswith(mean)
    assert cell("False sounds", "silence zeros", "near empty %") == "50.00"
    assert cell("False sounds", "true audio", "gap mIoU") == ""
    assert cell("False sounds", "offscreen (1 of 2 clips)", "gap mIoU").startswith("15.00 [")
    assert cell("False motion", "own, zero", "mIoU %").startswith(mean)
    assert cell("False motion", "none, own", "mIoU %").startswith(mean)
    assert cell("False motion", "own, own", "FPR outside, static %").startswith("7.50 [")
    each = by_hand["summary"]["published"]
    kinds = "silence, noise, offscreen (1 of 2 clips)"
    for column, key in (("G-mIoU %", "G-mIoU"), ("audio-blind G-mIoU %", "audio_blind_G-mIoU")):
        assert cell("Together", kinds, column).startswith(f"{100 * each[key]['value']:.2f}")
    gap = by_hand["types"]["offscreen"]["gap_f_beta"]["value"]
    assert cell("Gap by type", "offscreen", "gap f_beta").startswith(f"{100 * gap:.2f} [")
    legend = parts["False sounds"][1]
    for words in ("3 frames with an object of 2 clips", "above 0.2, 50.00 %", "0" * 64):
        assert words in legend
    assert "Shift" not in legend and "right source %" not in parts["False sounds"][0][0]


def test_clips_with_look_alikes_have_right_source_under_every_condition():
    """Clip a shows both objects in its two frames, clip b only one."""
    clips = {clip: [frame(20, 20, 0)] * 2 for clip in "ab"}
    found = {
        "true_audio": [[5, 0], [4, 4]],
        "late": [[0, 5], [5, 0]],
        "scrambled_track": [[0, 5]] * 2,
    }
    counts = {}
    for condition, covered in found.items():
        counts[condition] = table = count(clips, condition)
        table.columns["counts/object_pixels"] = np.array([[10, 10]] * 2 + [[10, 0]] * 2)
        table.columns["counts/object_pred"] = np.array([*covered, [5, 0], [5, 0]])
    numbers = summarize(counts, num_resamples=50) | {"facts": FACTS}
    c = numbers["conditions"]
    assert {name: c[name]["right_source"]["value"] for name in c} == {
        "true_audio": 0.75, "late": 0.5, "scrambled_track": 0.0
    }  # fmt: skip
    assert (
        c["true_audio"]["right_source"]["value"]
        == (metrics.look_alikes(counts["true_audio"])["look_alikes"]["right_source"])
    )
    sounds, _, _, motion = sections(numbers)
    for rows, titles in (
        (sounds[1], {"true audio": "75.00", "late": "50.00"}),
        (motion[1], {"own, own": "75.00", "own, scrambled": "0.00"}),
    ):
        column = rows[0].index("right source %")
        assert {row[0]: row[column].split(" ")[0] for row in rows[1:]} == titles
    assert "Right source" in " ".join(sounds[2])


def test_the_report_renders_every_table(by_hand):
    summary = Summary(by_hand, sections(by_hand), CONDITIONS)
    whole = report.Report({"step": 7}, {"true_audio": {"stream": {"mIoU": 0.5}}}, (), summary)
    text, markdown = report.to_text(whole), report.to_markdown(whole)
    for heading, rows, legend in sections(by_hand):
        assert f"### {heading}\n" in markdown and f"\n{heading}\n" in text
        for row in rows:
            assert "| " + " | ".join(row) + " |" in markdown
            assert all(cell in text for cell in row)
        for line in legend:
            assert f"- {line}" in markdown and f"- {line}" in text
    assert json.loads(report.to_json(whole))["negatives"] == by_hand


def test_conditions_of_the_summary_are_in_its_tables_alone():
    scores = dict.fromkeys(("true_audio", "silence_zeros", "another_query"), {"a": {"z": 0.5}})
    summary = Summary({}, conditions=CONDITIONS)
    for given, shown in (
        (summary, ["true audio", "another query"]),
        (None, ["true audio", "silence zeros", "another query"]),
    ):
        rows = report.table(report.Report({}, scores, summary=given))
        assert [row[0] for row in rows] == ["condition", *shown]


def test_numbers_that_are_not_defined_are_dashes():
    """Columns come in the order in which protocols name their measures."""
    scores = {"true_audio": {"a": {"z": 0.5, "y": None}, "b": {"x": None}}}
    scores["swapped_audio"] = {"a": {"z": 0.25, "y": 0.1}, "b": {"x": 0.2}, "c": {"x": 0.3}}
    assert report.table(report.Report({}, scores)) == [
        ["condition", "protocol", "z %", "y %", "x %", "change"],
        ["true audio", "a", "50.00", "–", "", ""],
        ["true audio", "b", "", "", "–", ""],
        ["swapped audio", "a", "25.00", "10.00", "", "-25.00"],
        ["swapped audio", "b", "", "", "20.00", ""],
        ["swapped audio", "c", "", "", "30.00", ""],
    ]
