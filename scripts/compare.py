"""Shows where two segmentation runs differ, as one HTML page that needs nothing else.

  python scripts/compare.py --a=runs/s4_vct --b=runs/s4_ama --output=DIR [--split=test] [--count=30]

Clips are ranked by IoU(A) - IoU(B). The page shows the first and the last --count of them: frame,
both predictions, truth, flow, motion and the sound, which plays, per second. AMA's map and gate are
those of B, or of A if B has no map; so are synchrony's evidence, gate and lag. Each clip has the
tags of avs_jax/results/failures.py for each run; the page begins with the number of clips per tag.
DIR also holds the counts from which all of this follows: counts_{a,b}.npz, failures_{a,b}.npz and
clips.csv.
"""

import argparse
import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from avs_jax.data.decode import decode_text
from avs_jax.data.records import open_records
from avs_jax.evaluate import Evaluator, encode_sound
from avs_jax.files import atomic_folder
from avs_jax.flag_style import FlagParser
from avs_jax.output_folder import check_output_folder
from avs_jax.results import failures, metrics, segmentation, visualize
from avs_jax.results.counts import FrameCounts
from avs_jax.runtime.checkpoint import Checkpoint
from avs_jax.runtime.command_line import exit_status
from avs_jax.runtime.compilation_cache import use_compilation_cache
from avs_jax.spec import InputError
from avs_jax.stopping import run_as_program
from avs_jax.task import Record
from avs_jax.tasks import make_task

PAGE = "compare.html"
# Scores of a fusion: its map, and what stands above the frames.
FUSIONS = (("motion_weight", "motion_gate"), ("sync_evidence", "sync_gate", "sync_lag"))


class Side(NamedTuple):
    """One of the two runs.

    Attributes:
      run: (records, condition, observers) -> Evaluation.
      config: of the run.
    """

    run: Evaluator
    config: Any


def main(argv: Sequence[str] | None = None) -> int:
    """Compares; returns the exit status."""
    args = _parser().parse_args(argv)
    return exit_status(lambda: compare(args))


def compare(args: argparse.Namespace) -> None:
    """`main` after parsing, with exceptions."""
    if args.count < 1:
        raise InputError(f"--count={args.count}: expected at least 1")
    output = check_output_folder(args.output, (args.a, args.b, args.data_dir), PAGE)
    use_compilation_cache()
    sides = {name: open_side(args, name) for name in ("a", "b")}
    check_comparable(*sides.values())
    records = open_records(sides["a"].config, args.split)
    counts, found = {}, {}
    for name, side in sides.items():
        counter = failures.FailureCounter()
        counts[name] = side.run(records, f"run {name}", [counter.add]).table
        found[name] = counter.table()
    iou = {name: clip_iou(table) for name, table in counts.items()}
    tags = {name: failures.tags(table) for name, table in found.items()}
    order = sorted(iou["a"], key=lambda clip: (iou["b"][clip] - iou["a"][clip], clip))
    shown = list(dict.fromkeys([*order[: args.count], *order[-args.count :]]))
    places = {decode_text(records[i]["clip_id"]): i for i in range(len(records))}
    chosen = {clip: records[places[clip]] for clip in shown}
    with atomic_folder(output) as fresh:
        for name in sides:
            counts[name].save(fresh / f"counts_{name}.npz")
            found[name].save(fresh / f"failures_{name}.npz")
        (fresh / "clips.csv").write_text(clips_csv(order, iou, tags))
        visualize.save_page(
            fresh / PAGE,
            f"{args.a} (A) and {args.b} (B), {args.split}",
            draw_clips(sides, chosen),
            {clip: describe(clip, iou, tags) for clip in shown},
            {clip: encode_sound(record) for clip, record in chosen.items()},
            summarize(iou, tags),
        )
    print("\n".join(summarize(iou, tags)))
    print(f"written: {args.output}/{PAGE}, {len(shown)} of {len(order)} clips")


def open_side(args: argparse.Namespace, name: str) -> Side:
    """A run, ready to be evaluated."""
    checkpoint = Checkpoint.find(getattr(args, name))
    config = checkpoint.config
    if config.get("task", "segment") != "segment" or config.data.num_classes != 2:
        raise InputError(f"--{name}: only runs of the binary segmentation task can be compared")
    if args.data_dir:
        config.data.data_dir = args.data_dir
    config.evaluate.audio = "silence"  # so that rows say which pixels move
    config.evaluate.num_pictures = 0
    weights = checkpoint.choose_weights(config.evaluate.weights)[-1]
    return Side(Evaluator(make_task(config), config, checkpoint, weights, {}), config)


def check_comparable(a: Side, b: Side) -> None:
    """Raises InputError unless both are scored on the same records in the same way."""
    for section, key in (("data", "dataset"), ("data", "num_frames"), ("evaluate", "score_size")):
        values = [side.config[section][key] for side in (a, b)]
        if values[0] != values[1]:
            raise InputError(
                f"config.{section}.{key} is {values[0]!r} in A and {values[1]!r} in B: they cannot "
                "be compared"
            )


def clip_iou(table: FrameCounts) -> dict[str, float]:
    """Clip -> mean IoU of its frames."""
    table = table.scored()
    iou = metrics.frame_iou(table)
    return {str(table.clip_id[group.start]): float(iou[group].mean()) for group in table.clips()}


def describe(clip: str, iou: Mapping[str, Any], tags: Mapping[str, Any]) -> str:
    """A line about a clip."""
    each = []
    for name in ("a", "b"):
        found = ", ".join(tags[name][clip]) or "no tag"
        each.append(f"{name.upper()}: IoU {100 * iou[name][clip]:.1f} %, {found}")
    return f"difference {100 * (iou['a'][clip] - iou['b'][clip]):+.1f}; " + "; ".join(each)


def summarize(iou: Mapping[str, Any], tags: Mapping[str, Any]) -> list[str]:
    """Lines about all clips."""
    lines = []
    for name in ("a", "b"):
        mean = 100 * np.mean(list(iou[name].values()))
        counted = failures.count_tags(tags[name])
        listed = ", ".join(f"{tag} {count}" for tag, count in counted.items())
        lines.append(f"{name.upper()}: {len(iou[name])} clips, mean IoU {mean:.2f} %; {listed}")
    return lines


def clips_csv(order: Sequence[str], iou: Mapping[str, Any], tags: Mapping[str, Any]) -> str:
    """A line per clip, ranked."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["clip", "iou_a", "iou_b", "tags_a", "tags_b"])
    for clip in order:
        joined = [";".join(tags[name][clip]) for name in ("a", "b")]
        writer.writerow([clip, iou["a"][clip], iou["b"][clip], *joined])
    return file.getvalue()


def draw_clips(sides: Mapping[str, Side], chosen: Mapping[str, Record]) -> dict[str, np.ndarray]:
    """The figure of each chosen clip."""
    seen: dict[str, dict[str, Any]] = {clip: {} for clip in chosen}
    for name, side in sides.items():

        def keep(scores, batch, name=name):
            for b, clip in enumerate(batch["clip_id"]):
                if clip:
                    row = {k: np.asarray(v[b]) for k, v in batch.items()}
                    seen[clip][name] = {k: np.asarray(v[b]) for k, v in scores.items()}
                    seen[clip]["row"] = seen[clip].get("row", {}) | row

        side.run(list(chosen.values()), f"run {name}, chosen clips", [keep])
    return {clip: _draw(clip, chosen[clip], found) for clip, found in seen.items()}


def _draw(clip: str, record: Record, found: Mapping[str, Any]) -> np.ndarray:
    row, keep = found["row"], found["row"]["valid"]
    flow = np.asarray(record["flow"])
    motion = row["motion"][keep] if "motion" in row else None
    fusions = {name: values[keep] for name, values in _shown_fusions(found).items()}
    return visualize.clip_picture(
        row["images"][keep],
        found["a"]["pred"][keep],
        row["labels"][keep],
        log_mel=row["log_mel"][keep],
        motion=motion,
        motion_weight=fusions.get("motion_weight"),
        evidence=fusions.get("sync_evidence"),
        flow=flow if flow.shape[-1] == 2 else None,
        titles=segmentation.frame_titles(row["frame_index"][keep], fusions),
        heading=clip,
        others={"B": found["b"]["pred"][keep]},
    )


def _shown_fusions(found: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The scores of FUSIONS to show, [T, ...]; all of a fusion are of the same run."""
    shown = {}
    for map_name, *captions in FUSIONS:
        scores = next((found[side] for side in ("b", "a") if map_name in found[side]), {})
        shown |= {name: scores[name] for name in (map_name, *captions) if name in scores}
    return shown


def _parser() -> FlagParser:
    parser = FlagParser(description=__doc__)
    parser.add_argument("--a", required=True, help="workdir, a step's directory, or weights")
    parser.add_argument("--b", required=True, help="the other one")
    parser.add_argument("--output", required=True, help="folder; it is replaced as a whole")
    parser.add_argument("--split", default="test", help="(%(default)s)")
    parser.add_argument("--data_dir", default="", help="of the records, if not that of the runs")
    parser.add_argument("--count", type=int, default=30, help="clips at either end (%(default)s)")
    return parser


if __name__ == "__main__":
    run_as_program(main)
