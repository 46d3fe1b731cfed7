"""Scores predictions on Ref-DAVIS17, MeViS, ReVOS or Ref-YouTube-VOS, as the original scripts do.

  python scripts/evaluate_rvos.py --set=mevis --root=FOLDER --predictions=predictions.json
      --output=DIR [--split=valid_u] [--protocol=merged]

predictions.json is {video: {expression id: {"prediction_masks": [RLE per frame]}}}, as Sa2VA's
evaluation writes it; or --predictions is a folder of {video}/{expression id}/{frame}.png, where any
value but 0 is the object. DIR gets report.json and, except for merged, counts.npz, a row per frame,
from which every number is computed. --set=davis17 has two protocols, per_expression (default) and
merged, which are not comparable (results/rvos.py); both come with DAVIS's recall and decay, also as
the original computes them (_legacy). --set=revos prints its own arithmetic and the original's.
The ground truth is what was published (data/rvos_truth.py); of a pickle nothing is executed.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from avs_jax.convert.mask_pickle import read_mask_pickle
from avs_jax.data.decode import decode_labels
from avs_jax.data.input_files import read_image
from avs_jax.data.rvos_folders import (
    FILES,
    Expression,
    VideoSet,
    decode_masks,
    read_predictions,
)
from avs_jax.data.rvos_truth import Truth, open_truth
from avs_jax.files import write_atomically
from avs_jax.flag_style import FlagParser
from avs_jax.progress import tracked
from avs_jax.results import rvos
from avs_jax.spec import InputError

PROTOCOLS = ("per_expression", "merged")
COUNTS = "counts.npz"
Reader = Callable[[Expression, int, tuple[int, int]], np.ndarray | None]


def main(argv: list[str] | None = None) -> int:
    """Parses the flags and scores; returns the exit status."""
    parser = FlagParser(description=__doc__)
    parser.add_argument("--set", required=True, choices=sorted(FILES))
    parser.add_argument("--root", required=True, type=pathlib.Path, help="the set's folder")
    parser.add_argument("--predictions", required=True, type=pathlib.Path, help="json or folder")
    parser.add_argument("--output", required=True, type=pathlib.Path, help="folder to write")
    parser.add_argument("--split", default="", help="default: the one with public masks")
    parser.add_argument("--protocol", choices=PROTOCOLS, default=PROTOCOLS[0])
    args = parser.parse_args(argv)
    args.output = args.output.expanduser()
    if args.protocol == "merged" and args.set != "davis17":
        parser.error("--protocol=merged is of --set=davis17")
    try:
        report = evaluate(args)
    except (InputError, OSError) as error:
        print(f"evaluate_rvos: {error}", file=sys.stderr)
        return 1
    write_atomically(args.output / "report.json", json.dumps(report, indent=2) + "\n")
    for protocol, values in report["protocols"].items():
        print(f"{protocol}: " + ", ".join(f"{k} {v}" for k, v in values.items()))
    return 0


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Scores every expression and writes the table; returns the report."""
    videos = VideoSet(args.set, args.root.expanduser(), args.split)
    truth = open_truth(videos, read_mask_pickle)
    read = make_reader(args.predictions.expanduser(), videos)
    facts = {"set": args.set, "split": videos.split, "truth": str(truth.place)}
    facts["predictions"] = str(args.predictions)
    if args.protocol == "merged":
        (args.output / COUNTS).unlink(missing_ok=True)  # of another protocol
        numbers = rvos.merged(merged_videos(videos, truth, read))
    else:
        rows: list[dict[str, Any]] = []
        for expression in tracked(
            videos.expressions, "scores", len(videos.expressions), "expression"
        ):
            rows += score_expression(truth, expression, read)
        table = rvos.ExpressionTable.from_rows(rows, facts)
        table.save(args.output / COUNTS)
        numbers = protocols(args.set, table)
    return {**facts, "protocols": numbers}


def protocols(name: str, table: rvos.ExpressionTable) -> dict[str, dict[str, float | None]]:
    """Protocol -> numbers of a set."""
    found = {"per_expression": rvos.per_expression(table), "coverage": rvos.coverage(table)}
    if name == "davis17":
        found |= {"davis": rvos.davis(table), "davis_legacy": rvos.davis(table, legacy=True)}
    if name == "revos":
        found = {"revos": rvos.revos(table), "revos_legacy": rvos.revos(table, True)} | found
    return found


def score_expression(truth: Truth, expression: Expression, read: Reader) -> list[dict[str, Any]]:
    """Rows of the table, one per frame."""
    objects, foreground = truth.objects(expression), truth.foreground(expression.video)
    size = foreground.shape[1:]
    pred = read(expression, len(foreground), size)
    nothing = dict.fromkeys(rvos.MEASURES, 0.0)
    return [
        {
            "video": expression.video,
            "expression": expression.id,
            "type": expression.type,
            "frame": t,
            "given": pred is not None,
            **(
                nothing if pred is None else rvos.score_frame(pred[t], objects[:, t], foreground[t])
            ),
        }
        for t in range(len(foreground))
    ]


def merged_videos(videos: VideoSet, truth: Truth, read: Reader):
    """Truth and predictions of each video, by annotator and object; see rvos.merged.

    The expressions of an object are its annotators', in the order of their numbers.
    """
    for video, mine in videos.of_videos().items():
        by_object: dict[str, list[Expression]] = {}
        for expression in sorted(mine, key=lambda e: (len(e.id), e.id)):
            if len(expression.objects) != 1:
                raise InputError(f"{video}, {expression.id}: means {expression.objects}, not one")
            by_object.setdefault(expression.objects[0], []).append(expression)
        counts = {len(group) for group in by_object.values()}
        if len(counts) != 1:
            raise InputError(f"{video}: its objects have {sorted(counts)} expressions, not as many")
        count, size = len(videos.frames[video]), truth.size(video)
        empty = np.zeros((count, *size), bool)
        groups = list(by_object.values())
        masks = np.stack([truth.objects(group[0]).any(axis=0) for group in groups])
        pred = [[read(group[a], count, size) for group in groups] for a in range(*counts)]
        given = np.array([[mask is not None for mask in row] for row in pred])
        pred = [[empty if mask is None else mask for mask in row] for row in pred]
        pred = np.array(pred) & ~truth.void(video)
        yield {"truth": masks, "predictions": pred, "given": given}


def make_reader(path: pathlib.Path, videos: VideoSet) -> Reader:
    """(expression, T, (H, W)) -> bool [T, H, W], None where there is no prediction.

    Raises:
      InputError: a prediction of no expression.
    """
    if path.is_dir():
        return lambda expression, _, size: _read_folder(path, videos, expression, size)
    given = read_predictions(path)
    known = {(e.video, e.id) for e in videos.expressions}
    extra = [(v, e) for v, x in given.items() for e in x if (v, e) not in known]
    if extra:
        raise InputError(f"{path}: predictions of no expression of this split: {extra[:3]}")

    def read(expression, count, size):
        coded = given.get(expression.video, {}).get(expression.id)
        if coded is None:
            return None
        return decode_masks(coded, count, size, f"{path}, {expression.video} {expression.id}")

    return read


def _read_folder(path, videos, expression, size):
    folder = path / expression.video / expression.id
    if not folder.is_dir():
        return None
    masks = []
    for frame in videos.frames[expression.video]:
        data, image = read_image(folder / f"{frame}.png")
        if (image.height, image.width) != size:
            found = f"{image.width}x{image.height} px, expected {size[1]}x{size[0]}"
            raise InputError(f"{folder / frame}.png: {found}")
        masks.append(decode_labels(data, 2).astype(bool))
    return np.stack(masks)


if __name__ == "__main__":
    sys.exit(main())
