"""Draws which word every cell of the feature maps attends to, for expressions of every kind.

  python scripts/plot_words.py --checkpoint=runs/refer_cma --output=DIR [--split=test_s]
      [--count=4] [--level=res3]

For a model of task `refer` with cross-modal attention over tokens (fusion "cma", text_pool
"tokens"). words.html has a figure per expression: frames, prediction, ground truth, the evidence
(probability of each pixel), and a heat map per word, the attention weight that each cell of
--level gives it, the mean over heads. "(none)" is the learned null key. Each kind of generated
expression (look, sound, time, both), and null expressions, are shown --count times, from different
clips; expressions of other datasets count as one kind.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from avs_jax.data.decode import decode_text
from avs_jax.data.records import open_records, record_name
from avs_jax.data.tokens import clean
from avs_jax.files import atomic_folder
from avs_jax.flag_style import FlagParser
from avs_jax.output_folder import check_output_folder
from avs_jax.results import visualize
from avs_jax.runtime.checkpoint import Checkpoint
from avs_jax.spec import EXPRESSION_KINDS, InputError
from avs_jax.task import Record, Task
from avs_jax.tasks import make_task

PAGE = "words.html"
NUM_FRAMES = 4  # shown of a clip, evenly spaced
ENDS = ("<s>", "</s>")


def main(argv: Sequence[str] | None = None) -> int:
    """Draws; returns the exit status."""
    args = _parser().parse_args(argv)
    try:
        draw_page(args)
    except (InputError, OSError) as error:
        print(f"plot_words: {error}", file=sys.stderr)
        return 1
    return 0


def draw_page(args: argparse.Namespace) -> None:
    """`main` after parsing, with exceptions."""
    if args.count < 1:
        raise InputError(f"--count={args.count}: expected at least 1")
    output = check_output_folder(args.output, (args.checkpoint, args.data_dir), PAGE)
    checkpoint = Checkpoint.find(args.checkpoint)
    config = checkpoint.config
    level = check_model(config, args.level)
    if args.data_dir:
        config.data.data_dir = args.data_dir
    task = make_task(config)
    variables = jax.device_put(checkpoint.variables(config.evaluate.weights))
    look = make_look(task, level)
    figures, texts = {}, {}
    for kind, record in choose(open_records(config, args.split), args.count):
        name = record_name(record)
        row = task.rows.prepare(record, None)
        inputs = {k: np.asarray(x)[None] for k, x in task.inputs(row).items()}
        found = jax.device_get(look(*variables, inputs))
        words = names_of(task, row["text"], found["attention"].shape[-1])
        figures[name] = draw(row, found, words)
        texts[name] = f"{kind}: {row['text']!r}"
    with atomic_folder(output) as fresh:
        heading = f"Attention to words at {level}: {args.checkpoint}, {args.split}"
        visualize.save_page(fresh / PAGE, heading, figures, texts)
    print(f"{args.output}/{PAGE}: {len(figures)} expressions")


def check_model(config: Any, level: str) -> str:
    """The level to show: the finest by default; InputError if the model has no words to show."""
    fusion = config.model.get("fusion", {"name": "none"})
    if config.task != "refer" or fusion["name"] != "cma" or fusion["text_pool"] != "tokens":
        raise InputError(
            "the checkpoint is of no model of task 'refer' with fusion 'cma' and text_pool 'tokens'"
        )
    levels = list(fusion["levels"])
    if level and level not in levels:
        raise InputError(f"--level={level}: choose one of {', '.join(levels)}")
    return level or min(levels)


def make_look(task: Task, level: str):
    """(params, batch_stats, inputs) -> attention [T, h, w, L (+ 1)] and pred [T, S, S]."""

    @jax.jit
    def look(params, batch_stats, inputs):
        variables = {"params": params, "batch_stats": batch_stats}
        outputs = task.model.apply(variables, inputs, train=False)
        attention = outputs["intermediates"]["cma"]["attention"][level]
        return {"attention": attention, "pred": task.score(outputs, inputs)["pred"][0]}

    return look


def choose(records: Sequence[Record], count: int) -> list[tuple[str, Record]]:
    """(kind, record) of `count` expressions of every kind, each from another clip if possible."""
    by_kind: dict[str, dict[str, Record]] = {}
    for i in range(len(records)):
        record = records[i]
        item = record["item"]
        kind = ("other", *EXPRESSION_KINDS)[int(record["kinds"][item])]
        kind = "null" if record["is_null"][item] else kind
        clips = by_kind.setdefault(kind, {})
        if len(clips) < count:
            clips.setdefault(decode_text(record["vid"]), record)
    return [(kind, record) for kind, clips in by_kind.items() for record in clips.values()]


def names_of(task: Task, text: str, num_keys: int) -> list[str]:
    """The name of every key that cells may attend to, "" for padding."""
    num_tokens = task.rows.sizes["N"]
    words = task.rows.tokenizer.names(clean(text))[: num_tokens - len(ENDS)]
    names = [ENDS[0], *words, ENDS[1]]
    names += [""] * (num_tokens - len(names))
    return names + ["(none)"] * (num_keys - num_tokens)


def draw(row: Mapping[str, Any], found: Mapping[str, Any], words: Sequence[str]) -> np.ndarray:
    """The figure of one expression; a word that occurs twice is numbered."""
    shown = np.linspace(0, int(np.sum(row["valid"])) - 1, NUM_FRAMES).round().astype(int)
    maps = {"evidence": found["pred"][shown]}
    for i, word in enumerate(words):
        if word:
            name = word if word not in maps else f"{word} ({i})"
            maps[name] = found["attention"][shown, ..., i]
    return visualize.clip_picture(
        np.asarray(row["images"])[shown],
        found["pred"][shown],
        np.asarray(row["labels"])[shown],
        titles=[f"{t} s" for t in shown],
        heading=row["text"],
        maps=maps,
    )


def _parser() -> FlagParser:
    parser = FlagParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="workdir or a step's directory")
    parser.add_argument("--output", required=True, help="folder; it is replaced as a whole")
    parser.add_argument("--split", default="test_s", help="(%(default)s)")
    parser.add_argument("--count", type=int, default=4, help="per kind (%(default)s)")
    parser.add_argument("--level", default="", help="res5 .. res2; default: the finest")
    parser.add_argument("--data_dir", default="", help="of the records, if not that of the run")
    return parser


if __name__ == "__main__":
    sys.exit(main())
