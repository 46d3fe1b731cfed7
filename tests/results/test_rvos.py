"""Referring-video sets: the original scripts' numbers on small trees, and files that do not fit."""

import json
import os
import pickle
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from avs_jax.convert.mask_pickle import read_mask_pickle
from avs_jax.data import rvos_folders
from avs_jax.data.rvos_folders import VideoSet, decode_rle
from avs_jax.data.rvos_truth import open_truth
from avs_jax.label_images import CLASS_PALETTE, indexed_image
from avs_jax.results import boundary, rvos
from avs_jax.spec import InputError
from scripts import evaluate_rvos

SETS = ("davis17", "mevis", "revos")


@pytest.fixture(scope="module")
def golden():
    from tests.conftest import GOLDEN

    return json.loads((GOLDEN / "refer" / "golden_rvos.json").read_text())


@pytest.fixture(scope="module")
def statistics():
    from tests.conftest import GOLDEN

    with np.load(GOLDEN / "refer" / "golden_davis_statistics.npz") as file:
        return dict(file)


def predictions(root, name):
    return root / ("valid_u" if name == "mevis" else "") / "predictions.json"


def score(root, name, output, *more):
    flags = [f"--set={name}", f"--root={root}", f"--output={output}"]
    given = [] if any(m.startswith("--predictions") for m in more) else [predictions(root, name)]
    flags += [f"--predictions={path}" for path in given]
    assert evaluate_rvos.main([*flags, *more]) == 0
    report = json.loads((output / "report.json").read_text())
    return report["protocols"], output / "counts.npz"


@pytest.mark.parametrize("name", ["davis17", "mevis"])
def test_the_scripts_numbers(name, golden, golden_dir, tmp_path):
    root = golden_dir / "refer" / "rvos" / name
    found, path = score(root, name, tmp_path / "out")
    want = golden["script_davis" if name == "davis17" else "script_mevis"]
    assert found["per_expression"] == {k: pytest.approx(want[k], abs=0.011) for k in want}
    table, exact = rvos.ExpressionTable.load(path), golden[f"unrounded_{name}"]
    for rows in rvos._expressions(table):
        key = f"{table['video'][rows.start]}_{table['expression'][rows.start]}"
        for measure in ("J", "F"):
            frames = exact[key][f"frames_{measure}"]
            np.testing.assert_allclose(table[measure][rows], frames, atol=1e-12)
    assert found["coverage"] == {"expressions": len(exact), "without_prediction": 0}


def test_revos_both_ways(golden, golden_dir, tmp_path):
    root = golden_dir / "refer" / "rvos" / "revos"
    found, path = score(root, "revos", tmp_path / "out")
    want = golden["script_revos"]
    names = {"referring": "referring", "reason": "reasoning", "overall": "overall"}
    for theirs, ours in names.items():
        for measure, value in want[theirs].items():
            name = "J&F" if measure == "JF" else measure
            assert found["revos_legacy"][f"{name} ({ours})"] == pytest.approx(value, abs=1e-6)
    # What is clipped never counts a pixel of two objects as wrong.
    assert found["revos"]["A (overall)"] >= found["revos_legacy"]["A (overall)"]
    assert found["revos"]["R (overall)"] > found["revos_legacy"]["R (overall)"]
    assert found["revos"]["J (overall)"] == found["revos_legacy"]["J (overall)"]


def test_a_and_r_of_frames(golden_dir):
    with np.load(golden_dir / "refer" / "golden_revos.npz") as file:
        golden = dict(file)
    shape = golden["revos/gt"].shape
    pred, foreground = (
        np.unpackbits(golden[f"revos/{name}_packbits"])[: np.prod(shape)].reshape(shape) > 0
        for name in ("pred", "foreground")
    )
    for t, total in enumerate(golden["revos/gt"]):
        objects = np.stack([total >= 1, total >= 2])
        found = rvos.score_frame(pred[t], objects, foreground[t])
        for name, key in (
            ("A_legacy", "A"), ("R_legacy", "R"), ("A", "A_gt_binarised"), ("R", "R_gt_binarised"),
            ("J", "J"), ("F", "F"),
        ):  # fmt: skip
            assert found[name] == pytest.approx(golden[f"revos/{key}"][t], abs=1e-12), (t, name)


def test_annotations_are_counted_in_string_order(golden, golden_dir):
    videos = VideoSet("davis17", golden_dir / "refer" / "rvos" / "davis17")
    found = {f"{e.video}_{e.id}": [int(a) for a in e.annotations] for e in videos.expressions}
    assert found == golden["davis17_anno_id_by_expression"]


@pytest.mark.parametrize("name", SETS)
def test_the_loaders_expressions(name, golden_dir):
    """Sa2VA's prompts hold the expression; its loader takes the videos as they are in the file."""
    path = golden_dir / "refer" / "golden_rvos_loader.json"
    want = sorted(json.loads(path.read_text())[name], key=lambda row: row["video_id"])
    videos = VideoSet(name, golden_dir / "refer" / "rvos" / name)
    truth = open_truth(videos, read_mask_pickle)
    found = [
        {
            "video_id": e.video,
            "exp_id": e.id,
            "text_prompt": e.text if "?" in e.text else f"<image>\nPlease segment {e.text}.",
            "frames": videos.frames[e.video],
            "ori_height": truth.size(e.video)[0],
            "ori_width": truth.size(e.video)[1],
        }
        for e in videos.expressions
    ]
    assert found == want


BOUNDARY_IOU = {
    "same": 1, "shift_row_1": 0.535354, "shift_rows_2_cols_3": 0.013333, "grown_2": 0,
    "left_half": 0.422222, "all_ones": 0,
}  # fmt: skip


def test_hand_made_masks(golden):
    def box(rows, columns):
        mask = np.zeros((64, 96), bool)
        mask[rows, columns] = True
        return mask

    truth = box(slice(16, 48), slice(24, 72))
    cases = {
        "same": truth,
        "shift_row_1": np.roll(truth, 1, 0),
        "shift_rows_2_cols_3": np.roll(truth, (2, 3), (0, 1)),
        "grown_2": box(slice(14, 50), slice(22, 74)),
        "left_half": box(slice(16, 48), slice(24, 48)),
        "all_ones": np.ones_like(truth),
    }
    pairs = {name: (pred, truth) for name, pred in cases.items()}
    y, x = np.mgrid[:64, :96]
    far = (y - 31.5) ** 2 + (x - 47.5) ** 2
    pairs["disk_22_vs_20"] = far <= 22**2, far <= 20**2
    pairs["corner_20x30_vs_22x30"] = [box(slice(rows), slice(30)) for rows in (20, 22)]
    want = golden["hand_made_64x96_[J,F_boundary]"]
    assert pairs.keys() == want.keys()
    for name, pair in pairs.items():
        found = [rvos.jaccard(*pair), rvos.f_boundary(*pair)]
        assert found == pytest.approx(want[name], abs=1e-12), name
    for name, pred in cases.items():
        counts = boundary.count_boundary(pred, truth, np.ones_like(truth))
        found = counts["band_inter"] / counts["band_union"]
        assert found == pytest.approx(BOUNDARY_IOU[name], abs=1e-6), name
    empty = np.zeros_like(truth)
    assert (rvos.jaccard(empty, empty), rvos.f_boundary(empty, empty)) == (1, 1)
    assert (rvos.jaccard(truth, empty), rvos.f_boundary(truth, empty)) == (0, 0)


def test_objects_compete_and_are_matched(golden_dir, tmp_path):
    rng = np.random.default_rng(0)
    truth = np.zeros((3, 2, 24, 24), bool)
    for i in range(3):
        truth[i, :, 8 * i : 8 * i + 6, 4:20] = True
    shuffled = truth[[2, 0, 1]]
    every = np.ones((2, 3), bool)

    def merged(*predictions, given=every):
        video = {"truth": truth, "predictions": np.stack(predictions), "given": given}
        return rvos.merged([video])

    found = merged(truth, shuffled)
    assert found.pop("coverage") == {"expressions": 6, "without_prediction": 0}
    perfect = {"J": 100, "J recall": 100, "J decay": 0, "F": 100, "F recall": 100, "F decay": 0}
    assert found == dict.fromkeys(("merged", "merged_legacy"), {**perfect, "J&F": 100})
    both = truth.copy()
    both[1] |= truth[0]  # a pixel of two proposals goes to the first
    np.testing.assert_array_equal(rvos.compete(both), truth)
    half = truth & (rng.uniform(size=truth.shape) < 0.5)
    found = merged(truth, half)["merged"]
    shares = (half.sum((2, 3)) / truth.sum((2, 3))).mean()  # inside of the truth: its J
    assert found["J"] == pytest.approx(100 * (1 + shares) / 2, abs=0.01) and found["F"] < 100
    truth[2, 1] = False  # an object that leaves: an empty mask is right there, no mask is not
    missing = truth.copy()
    missing[2] = False
    assert merged(missing, truth)["merged"]["J"] == pytest.approx(100 * (2.5 / 3 + 1) / 2, abs=0.01)
    every[0, 2] = False
    found = merged(missing, truth)
    assert found["merged"]["J"] == pytest.approx(100 * (2 / 3 + 1) / 2, abs=0.01)
    assert found["coverage"] == {"expressions": 6, "without_prediction": 1}
    root = golden_dir / "refer" / "rvos" / "davis17"
    numbers, _ = score(root, "davis17", tmp_path / "out", "--protocol=merged")
    assert list(numbers) == ["merged", "merged_legacy", "coverage"]
    assert 0 < numbers["merged"]["J&F"] < 100
    assert numbers["merged"] == numbers["merged_legacy"]  # of videos of 6 frames


def test_statistics_of_davis(statistics):
    for count in (1, 2, 3, 4, 5, 7, 10, 25, 80, 255, 256, 257, 300):
        values = statistics[f"davis_stats/n{count}/values"]
        mean, recall, decay = statistics[f"davis_stats/n{count}/mean_recall_decay"]
        exact = {"abs": 1e-12, "nan_ok": True}
        assert rvos.statistics(values, legacy=True) == pytest.approx((mean, recall, decay), **exact)
        found = rvos.statistics(values)
        if count > 255:  # the original's decay is of no frame
            assert np.isnan(decay)
            edges = {256: (65, 191), 257: (65, 192), 300: (76, 224)}[count]
            decay = np.nanmean(values[: edges[0]]) - np.nanmean(values[edges[1] :])
        assert found == pytest.approx((mean, recall, decay), abs=1e-12), count
    # and of other frames than the quarters' where no edge passes another
    long = np.linspace(0, 1, 700)
    assert rvos.statistics(long)[2] == pytest.approx(-0.75, abs=0.01)
    assert -0.7 < rvos.statistics(long, legacy=True)[2] < 0


def test_frames_of_matched_objects(statistics):
    truth, proposals = (
        np.unpackbits(statistics[f"davis_seq/{name}_packbits"]).reshape(shape) > 0
        for name, shape in zip(("gt", "res"), statistics["davis_seq/shapes"], strict=True)
    )
    proposals = np.concatenate([proposals, np.zeros_like(proposals[:1])])
    found = np.stack(rvos.match_objects(proposals[[2, 1, 0]], truth, np.ones(3, bool)))
    for i, name in enumerate(("J", "F")):
        want = statistics[f"davis_seq/{name}_unsup"]
        np.testing.assert_allclose(found[..., i], want, atol=1e-12)


def test_statistics_of_the_expressions(golden, golden_dir, tmp_path):
    found, path = score(golden_dir / "refer" / "rvos" / "davis17", "davis17", tmp_path / "out")
    exact = golden["unrounded_davis17"].values()
    for name in ("J", "F"):
        curves = [np.array(e[f"frames_{name}"]) for e in exact]
        means = np.mean([rvos.statistics(curve) for curve in curves], axis=0)
        keys = (name, f"{name} recall", f"{name} decay")
        assert [found["davis"][k] for k in keys] == pytest.approx(100 * means, abs=0.0051)
        assert found["davis"][name] == found["per_expression"][name]
    assert found["davis"] == found["davis_legacy"]
    table = rvos.ExpressionTable.load(path)
    rows = [
        {k: table[k][0] for k in rvos.ExpressionTable.schema} | {"frame": t} for t in range(256)
    ]
    many = rvos.ExpressionTable.from_rows(rows, {})
    assert rvos.davis(many)["J decay"] == 0 and rvos.davis(many, legacy=True)["J decay"] is None
    assert rvos.davis(rvos.ExpressionTable.from_rows([], {})) == dict.fromkeys(found["davis"])


def test_png_folders_score_the_same_whatever_the_value_of_the_object(golden_dir, tmp_path):
    root = golden_dir / "refer" / "rvos" / "revos"
    want, _ = score(root, "revos", tmp_path / "json")
    videos = VideoSet("revos", root)
    for video, expressions in rvos_folders.read_predictions(predictions(root, "revos")).items():
        for expression, coded in expressions.items():
            folder = tmp_path / "png" / video / expression
            folder.mkdir(parents=True)
            for name, rle in zip(videos.frames[video], coded, strict=True):
                Image.fromarray(decode_rle(rle).astype(np.uint8) * 255).save(folder / f"{name}.png")
    found, _ = score(root, "revos", tmp_path / "out", f"--predictions={tmp_path / 'png'}")
    assert found == want
    shutil.rmtree(tmp_path / "png" / "JPEGImages" / "SETA" / "clip_one" / "0")
    found, _ = score(root, "revos", tmp_path / "out2", f"--predictions={tmp_path / 'png'}")
    assert found["coverage"]["without_prediction"] == 1
    assert found["revos"]["J (referring)"] < want["revos"]["J (referring)"]


def encode_rle(mask):
    """A mask, bool [H, W], as an RLE with counts as text."""
    flat = np.concatenate([[False], mask.T.ravel(), [not mask.T.ravel()[-1]]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    runs = np.diff(np.concatenate([[0], edges])).tolist()
    text = ""
    for i, run in enumerate(runs):
        value = run - (runs[i - 2] if i > 2 else 0)
        while True:
            bits = value & 0x1F
            value >>= 5
            is_last = value == (-1 if bits & 0x10 else 0)
            text += chr((bits if is_last else bits | 0x20) + 48)
            if is_last:
                break
    return {"size": list(mask.shape), "counts": text}


def test_rle_there_and_back_and_damaged():
    rng = np.random.default_rng(1)
    for shape in ((1, 1), (7, 5), (48, 64)):
        for share in (0, 0.3, 0.5, 1):
            mask = rng.uniform(size=shape) < share
            np.testing.assert_array_equal(decode_rle(encode_rle(mask)), mask)
            flat = mask.T.ravel()
            edges = np.flatnonzero(np.diff(np.concatenate([[0], flat.astype(int)])))
            runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
            np.testing.assert_array_equal(decode_rle({"size": shape, "counts": runs}), mask)
    for counts, match in (
        ([3, 4], "runs of 7 pixels"), ([-1, 7], "expected runs"), (None, "expected runs"),
        ("\x00", "no character"), ("o", "in the middle"), ("~" * 30, "no character"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=match):
            decode_rle({"size": [2, 3], "counts": counts})
    for size in ([10**6, 10**6], [0, 3], "ab", None):
        with pytest.raises(InputError, match="RLE"):
            decode_rle({"size": size, "counts": [6]})


def edit(root, file, change):
    path = root / file
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_trees_that_do_not_fit_say_why(golden_dir, tmp_path, capsys):
    def fails(change, file, match):
        root = shutil.copytree(golden_dir / "refer" / "rvos" / "mevis", tmp_path / "mevis")
        edit(root / "valid_u", file, change)
        flags = [f"--root={root}", f"--predictions={predictions(root, 'mevis')}"]
        flags += ["--set=mevis", f"--output={tmp_path / 'out'}"]
        assert evaluate_rvos.main(flags) == 1
        assert match in capsys.readouterr().err
        shutil.rmtree(root)

    meta = "meta_expressions.json"
    fails(lambda x: x["videos"].update({"../up": {}}), meta, "leaves the folder")
    fails(lambda x: x["videos"]["0a1b2c"].pop("frames"), meta, "'0a1b2c' is damaged")
    fails(lambda x: x.pop("videos"), meta, "has no videos")
    fails(lambda x: x.pop("1"), "mask_dict.json", "no masks of the annotations ['1']")
    fails(lambda x: x["0"].pop(), "mask_dict.json", "5 masks for 6 frames")
    fails(lambda x: x["0"][1].update(size=[24, 64]), "mask_dict.json", "a mask of (24, 64)")
    first = ("0a1b2c", "0", "prediction_masks")
    fails(
        lambda x: x[first[0]][first[1]][first[2]][0].update(size=[24, 64]),
        "predictions.json",
        "a mask of (24, 64), expected (48, 64)",
    )
    fails(lambda x: x.update(other={"0": {first[2]: []}}), "predictions.json", "no expression of")
    args = SimpleNamespace(set="mevis", root=tmp_path / "none", split="", predictions=tmp_path)
    with pytest.raises(InputError, match="meta_expressions.json: missing"):
        evaluate_rvos.evaluate(args)


def paint(root):
    """Writes Annotations (the value of a pixel is the object's id), and mask_dict.json of them.

    The fixture's objects overlap, which a label image cannot show: the later one stays.
    """
    videos = VideoSet("davis17", root)
    truth, masks = open_truth(videos, read_mask_pickle), {}
    for video, mine in videos.of_videos().items():
        folder = root / "valid" / "Annotations" / video
        folder.mkdir(parents=True)
        labels = np.zeros((len(videos.frames[video]), *truth.size(video)), np.uint8)
        for expression in mine:
            labels[truth.objects(expression)[0]] = int(expression.objects[0])
        for expression in mine:
            coded = [encode_rle(frame == int(expression.objects[0])) for frame in labels]
            masks[expression.annotations[0]] = coded
        for name, frame in zip(videos.frames[video], labels, strict=True):
            indexed_image(frame, CLASS_PALETTE).save(folder / f"{name}.png")
    (root / "valid" / "mask_dict.json").write_text(json.dumps(masks))


def unlink_mask_dicts(root):
    for file in root.rglob("mask_dict.*"):
        file.unlink()


@pytest.fixture
def davis(golden_dir, tmp_path):
    return shutil.copytree(golden_dir / "refer" / "rvos" / "davis17", tmp_path / "davis17")


@pytest.mark.parametrize("kind", ["pickle", "annotations"])
def test_published_masks_give_the_same_numbers(kind, davis, tmp_path):
    if kind == "annotations":
        paint(davis)
    want, path = score(davis, "davis17", tmp_path / "json")
    merged, _ = score(davis, "davis17", tmp_path / "json_merged", "--protocol=merged")
    if kind == "annotations":
        unlink_mask_dicts(davis)
    else:
        (davis / "valid" / "mask_dict.json").unlink()
    found, there = score(davis, "davis17", tmp_path / "out")
    assert found == want
    for name in ("J", "F"):
        np.testing.assert_array_equal(
            rvos.ExpressionTable.load(there)[name], rvos.ExpressionTable.load(path)[name]
        )
    assert score(davis, "davis17", tmp_path / "merged", "--protocol=merged")[0] == merged
    place = {"pickle": "mask_dict.pkl", "annotations": "Annotations"}[kind]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["truth"] == str(davis / "valid" / place)


@pytest.mark.parametrize("kind", ["train/mask_dict.pkl", "mask_dict.pkl", "annotations"])
def test_ref_youtube_vos_from_where_its_masks_are(kind, davis, tmp_path):
    if kind == "annotations":
        paint(davis)
    want, _ = score(davis, "davis17", tmp_path / "davis")
    root = tmp_path / "ytvos"
    for part in (".", "meta_expressions"):
        shutil.copytree(davis / part / "valid", root / part / "train")
    shutil.copy(davis / "predictions.json", root)
    (root / "train" / "mask_dict.json").unlink()
    if kind == "mask_dict.pkl":
        shutil.move(root / "train" / kind, root / kind)
    elif kind == "annotations":
        unlink_mask_dicts(root)
    found, _ = score(root, "ytvos", tmp_path / "out")
    assert found == {name: want[name] for name in ("per_expression", "coverage")}
    (root / "train").rename(root / "valid")
    (root / "meta_expressions" / "train").rename(root / "meta_expressions" / "valid")
    if kind == "mask_dict.pkl":  # it is that of train
        with pytest.raises(InputError, match="split 'valid' of 'ytvos' cannot be scored"):
            open_truth(VideoSet("ytvos", root, "valid"), read_mask_pickle)


def test_void_pixels_count_in_no_mask_of_the_merged_protocol(davis, tmp_path):
    paint(davis)
    unlink_mask_dicts(davis)
    before, _ = score(davis, "davis17", tmp_path / "a", "--protocol=merged")
    for path in (davis / "valid" / "Annotations").rglob("*.png"):
        with Image.open(path) as image:
            labels = np.array(image)
        labels[labels == 0] = 255  # whatever is predicted there is not wrong
        indexed_image(labels, CLASS_PALETTE).save(path)
    after, _ = score(davis, "davis17", tmp_path / "b", "--protocol=merged")
    assert after["merged"]["J"] > before["merged"]["J"]
    truth = open_truth(VideoSet("davis17", davis), read_mask_pickle)
    assert not (truth.void("bear-b") & truth.foreground("bear-b")).any()
    assert (truth.void("bear-b") | truth.foreground("bear-b")).all()


def test_annotations_that_do_not_fit_say_why(davis):
    paint(davis)
    unlink_mask_dicts(davis)
    folder = davis / "valid" / "Annotations" / "bear-b"

    def fails(match):
        with pytest.raises(InputError, match=match):
            open_truth(VideoSet("davis17", davis), read_mask_pickle).size("bear-b")

    Image.new("RGB", (64, 48)).save(folder / "00005.png")
    fails("00005.png: a label image of shape .* expected one class index per pixel")
    Image.new("L", (32, 48)).save(folder / "00005.png")
    fails("00005.png: .48, 32., but the first frame has .48, 64.")
    (folder / "00004.png").write_bytes(b"none")
    fails("00004.png: unreadable image")
    (folder / "00003.png").unlink()
    fails("00003.png: missing")
    meta = davis / "meta_expressions" / "valid" / "meta_expressions.json"
    content = json.loads(meta.read_text())
    for value in ("0", "255", "one", []):
        content["videos"]["kite-a"]["expressions"]["1"]["obj_id"] = value
        meta.write_text(json.dumps(content))
        fails("kite-a, expression 1: means object .*, expected 1 to 254")


class Harmful:
    """A pickle of it calls os.mkdir."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickled_masks_are_read_without_running_them(golden_dir, tmp_path):
    path = golden_dir / "refer" / "rvos" / "davis17" / "valid" / "mask_dict.pkl"
    assert read_mask_pickle(path) == json.loads(path.with_suffix(".json").read_text())
    whole, file = path.read_bytes(), tmp_path / "mask_dict.pkl"
    rle = {"size": [2, 3], "counts": b"06"}
    file.write_bytes(pickle.dumps({0: [rle, None, rle], "1": [rle]}))
    assert read_mask_pickle(file) == {"0": [rle, None, rle], "1": [rle]}
    within: list = []
    within.append(within)
    for content, match in (
        (b"", "the file is empty"),
        (whole[: len(whole) // 2], "truncated or damaged pickle"),
        (pickle.dumps([1]), "not a dict of masks"),
        (pickle.dumps({"0": Harmful(tmp_path / "ran")}), "the pickle names posix.mkdir"),
        (pickle.dumps({"0": within}), "annotation 0, frame 0: .*not an RLE"),
        (pickle.dumps({"0": [{"size": [2, 3]}]}), "annotation 0, frame 0: .*not an RLE"),
        (pickle.dumps({"0": [{"size": [2, within], "counts": b"06"}]}), "not an RLE"),
        (pickle.dumps({"0": rle}), "annotation 0: a dict .* not a list of masks"),
        (pickle.dumps({"0": [], 0: []}), "as a number and as text"),
        (pickle.dumps({1.5: []}), "as an annotation id"),
    ):
        file.write_bytes(content)
        with pytest.raises(InputError, match=match) as error:
            read_mask_pickle(file)
        assert str(error.value).startswith(f"{file}: ")
    assert not (tmp_path / "ran").exists()
