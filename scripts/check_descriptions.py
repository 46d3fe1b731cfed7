"""Do the words of a describer single out their object? Asks a model that segments expressions.

  python scripts/check_descriptions.py --checkpoint=DESCRIBE --refer=REFER --output=FILE.json

Every object of a split (--split, by default that of the describer) is described once, by the
checkpoint of task `describe`. A checkpoint of task `refer` then reads the words:

  J_cycle       mean IoU of the mask that it finds for them with the object's own, over frames
  J_reference   the same for the first expression that a person, or the generator, gave
  unambiguity   share of the objects that its alignment ranks first of their clip's objects for the
                words; ties count against them, and only clips with several objects count (`ranked`
                of the objects)
  unambiguity_reference
                the same for that first expression
  shuffled      unambiguity if every object gets the words of another one, drawn at random: chance
  chance        mean of 1 / objects of the clip
"""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from PIL import Image

from avs_jax.data import transforms
from avs_jax.data.expressions import clip_record
from avs_jax.data.records import open_records
from avs_jax.data.tokens import words_of
from avs_jax.files import write_atomically
from avs_jax.inference.predictor import Predictor
from avs_jax.results.refavs import THRESHOLD
from avs_jax.runtime.checkpoint import Checkpoint
from avs_jax.runtime.command_line import (
    CommandLine,
    checkpoint_config,
    define_strings,
    exit_status,
    parse,
)
from avs_jax.spec import InputError
from avs_jax.stopping import run_as_program
from avs_jax.tasks import make_task

SEED = 0


def main(argv: Sequence[str]) -> int:
    """Parses the flags and checks; returns the exit status."""
    required = ("checkpoint", "refer", "output")
    return exit_status(
        lambda: run(parse(argv, _define_flags, __doc__, required, needs_config=False))
    )


def run(line: CommandLine) -> None:
    """`main` after parsing, with exceptions."""
    checkpoint = Checkpoint.find(line.values.checkpoint)
    config, _ = checkpoint_config(line, checkpoint)
    describer = Predictor(make_task(config), config, checkpoint)
    reader = Reader(Checkpoint.find(line.values.refer))
    split = line.values.split or config.evaluate.split
    found = check(describer, reader, open_records(config, split))
    write_atomically(line.values.output, json.dumps({"split": split, **found}, indent=2) + "\n")
    numbers = [f"{name} {value:.3f}" for name, value in found.items() if isinstance(value, float)]
    print(f"{len(found['objects'])} objects, {found['ranked']} ranked: " + ", ".join(numbers))


class Reader:
    """A model of task `refer`: words to masks, and to vectors that objects are compared with."""

    def __init__(self, checkpoint: Checkpoint):
        config = checkpoint.config
        if config.task != "refer":
            raise InputError(f"--refer={checkpoint.directory}: task {config.task!r}, not 'refer'")
        self._predictor = Predictor(make_task(config), config, checkpoint)
        model = self._predictor.task.model

        @jax.jit
        def align(variables, inputs):
            names = ("params", "batch_stats")
            outputs = model.apply(dict(zip(names, variables, strict=True)), inputs, train=False)
            return outputs["align_map"][0], outputs["align_text"][0]

        self._align = align

    def read(self, record: Mapping[str, Any], text: str) -> dict[str, Any]:
        """IoU per frame with the object of the record; vectors of object and words."""
        row = self._predictor.task.rows.prepare({**record, "text": text}, None)
        inputs = {k: np.asarray(x)[None] for k, x in self._predictor.task.inputs(row).items()}
        pred = self._predictor.arrays(inputs)["pred"][0] > THRESHOLD
        truth, valid = row["labels"] == 1, row["valid"]
        cells, words = jax.device_get(self._align(self._predictor.variables, inputs))
        return {
            "iou": frame_ious(pred[valid], truth[valid]),
            "object": mean_under(cells[valid], truth[valid]),
            "words": unit(words),
        }


def check(describer: Predictor, reader: Reader, records: Sequence[Mapping]) -> dict[str, Any]:
    """The numbers, and per object its words."""
    words = describer.config.data.text.words
    objects, clips, cycle = [], [], []
    vectors: list[dict[str, Any]] = []
    given: list[dict[str, Any]] = []
    seen = set()
    for record in records:
        clip = clip_record(record)
        name = (clip["vid"], clip["fid"])
        if clip["is_null"] or name in seen:
            continue
        seen.add(name)
        row = describer.task.rows.prepare(record, None)
        inputs = {k: np.asarray(x)[None] for k, x in describer.task.inputs(row).items()}
        said = words_of(describer.arrays(inputs)["words"][0].tolist(), words)
        found = reader.read(record, said)
        cycle.append(found["iou"].mean())
        given.append(reader.read(record, clip["text"]))
        vectors.append(found)
        clips.append(clip["vid"])
        objects.append({"object": f"{name[0]}/{name[1]}", "text": clip["text"], "words": said})
    if not objects:
        raise InputError("no expression of this split means an object")
    things = np.stack([found["object"] for found in vectors])
    texts, references = (np.stack([x["words"] for x in found]) for found in (vectors, given))
    return {
        "J_cycle": float(np.mean(cycle)),
        "J_reference": float(np.mean([found["iou"].mean() for found in given])),
        **unambiguity(things, texts, clips),
        "unambiguity_reference": unambiguity(things, references, clips)["unambiguity"],
        "shuffled": unambiguity(things, texts[draw_others(len(texts))], clips)["unambiguity"],
        "objects": objects,
    }


def draw_others(count: int) -> np.ndarray:
    """int64 [count]: another object for each, each once: the next one in a random order."""
    order = np.random.default_rng(SEED).permutation(count)
    others = np.empty_like(order)
    others[order] = np.roll(order, -1)
    return others


def unambiguity(things: np.ndarray, texts: np.ndarray, clips: Sequence[str]) -> dict[str, Any]:
    """See the module's docstring; row i of both belongs to an object of clip i."""
    clips, hits, shares = np.asarray(clips), [], []
    for i in range(len(clips)):
        rivals = np.flatnonzero((clips == clips[i]) & (np.arange(len(clips)) != i))
        if len(rivals):
            hits.append(bool((things[rivals] @ texts[i] < things[i] @ texts[i]).all()))
            shares.append(1 / (1 + len(rivals)))
    if not hits:
        raise InputError("no clip of this split has several objects with expressions")
    found = {"unambiguity": float(np.mean(hits)), "chance": float(np.mean(shares))}
    return found | {"ranked": len(hits)}


def frame_ious(pred: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """float64 [T] of bool [T, H, W]; where the truth is empty, the share that is empty in both."""
    union, inter = (pred | truth).sum((1, 2)), (pred & truth).sum((1, 2))
    empty = ~truth.any((1, 2))
    return np.where(empty, 1 - union / truth[0].size, inter / np.maximum(union, 1))


def mean_under(cells: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Unit vector [E]: the mean of cells [T, h, w, E] under bool masks [T, H, W]."""
    size = cells.shape[1:3]
    share = [transforms.resize(np.float32(m), size, Image.Resampling.BOX) for m in truth]
    return unit(np.einsum("thw,thwe->e", np.stack(share), cells))


def unit(x: np.ndarray) -> np.ndarray:
    return x / max(float(np.linalg.norm(x)), 1e-12)


def _define_flags(values: flags.FlagValues) -> None:
    define_strings(
        values,
        {
            "checkpoint": "a run of task `describe`",
            "refer": "a run of task `refer`",
            "split": "default: config.evaluate.split of the describer",
            "output": ".json to write",
        },
    )


if __name__ == "__main__":
    run_as_program(main, sys.argv)
