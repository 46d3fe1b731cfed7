"""Scores where models of task `align` hear a sound, by the evaluator of task `segment`.

  python scripts/score_maps.py --config=configs/ms3_vct.py:demo --config.evaluate.audio=silence
      --checkpoint=runs/align-seed0 --checkpoint=runs/align-seed1 --output=DIR [--split=test]

No mask has trained the map of avs_jax/models/align.py: it is the cosine of a second's sound with
each cell of its frame. Each frame's least and largest cosine count as probabilities 0 and 1.

--config, a recipe of binary segmentation, chooses the records and the conditions, such as another
clip's sound and silence; its model is not used. Size and sound front end are the checkpoint's.
Checkpoints are runs of one recipe with different seeds. DIR gets

  RUN/                   report.json, report.md and counts*.npz of one checkpoint
  table.md, .csv, .tex   per condition: mean and deviation over the checkpoints, and the difference
                         from the clips' own sound (avs_jax/results/ablation.py)
"""

import functools
import pathlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict

from avs_jax.data.records import open_records
from avs_jax.evaluate import Evaluator, data_facts, make_report
from avs_jax.files import atomic_folder, write_atomically
from avs_jax.output_folder import check_output_folder
from avs_jax.report_identity import number_digest
from avs_jax.results import ablation
from avs_jax.results.report import Report, to_text, write
from avs_jax.results.table import Table
from avs_jax.runtime.checkpoint import Checkpoint
from avs_jax.runtime.command_line import CommandLine, define_strings, exit_status, parse
from avs_jax.runtime.compilation_cache import use_compilation_cache
from avs_jax.spec import TRUE_AUDIO, InputError, nearest
from avs_jax.stopping import run_as_program
from avs_jax.task import Task
from avs_jax.tasks import make_task

MEASURES = ("stream/mIoU", "stream/f_beta")


class Scored(NamedTuple):
    """One checkpoint.

    Attributes:
      seed: of its run.
      report: of all conditions.
      tables: condition -> counts of every frame.
    """

    seed: int
    report: Report
    tables: Mapping[str, Table]


def main(argv: Sequence[str]) -> int:
    """Parses the flags and scores; returns the exit status."""
    required = ("checkpoint", "output")
    return exit_status(lambda: run(parse(argv, _define_flags, __doc__, required)))


def run(line: CommandLine) -> None:
    """`main` after parsing, with exceptions."""
    config, output = line.config, pathlib.Path(line.values.output).expanduser()
    if config.task != "segment" or config.data.num_classes != 2:
        raise InputError(f"--config: {config.name} is not a recipe of binary segmentation")
    checkpoints = [Checkpoint.find(path) for path in line.values.checkpoint]
    check_runs(checkpoints)
    folders = [
        check_output_folder(f"{output}/{run.name}", line.values.checkpoint, "report.json")
        for run in (checkpoint.run_directory for checkpoint in checkpoints)
    ]
    use_compilation_cache()
    found = []
    for checkpoint, folder in zip(checkpoints, folders, strict=True):
        scored = score_checkpoint(config, checkpoint, line.values.split)
        with atomic_folder(folder) as fresh:
            for i, (name, table) in enumerate(scored.tables.items()):
                table.save(fresh / (f"counts_{name}.npz" if i else "counts.npz"))
            write(scored.report, fresh)
        print(to_text(scored.report))
        found.append(scored)
    tables = compare(found, make_task(config), line.values.measure)
    for ending, text in (
        ("md", ablation.to_markdown(tables)),
        ("csv", ablation.to_csv(tables)),
        ("tex", ablation.to_latex(tables)),
    ):
        write_atomically(output / f"table.{ending}", text)
    print(ablation.to_markdown(tables))


def check_runs(checkpoints: Sequence[Checkpoint]) -> None:
    """InputError unless these are runs of task `align` that differ in name and seed."""
    names: dict[Any, str] = {}
    for checkpoint in checkpoints:
        config, name = checkpoint.config, checkpoint.run_directory.name
        if config.get("task") != "align":
            raise InputError(f"--checkpoint={name}: task {config.get('task')!r}, not 'align'")
        for what in (f"the name {name}", f"config.seed = {config.seed}"):
            if what in names:
                raise InputError(f"--checkpoint={name}: {names[what]} also has {what}")
            names[what] = name


def score_checkpoint(config: ConfigDict, checkpoint: Checkpoint, split: str) -> Scored:
    """The maps of one checkpoint, scored under the conditions of a segmentation recipe."""
    task, records = make_task(config), open_records(config, split)
    controls = task.controls(records, split)
    mapping = checkpoint.config
    mapping.data.update(dataset=config.data.dataset, num_workers=config.data.num_workers)
    mapping.evaluate.update(num_pictures=0, batch_size=config.evaluate.batch_size)
    mapper = make_task(mapping)
    weights = checkpoint.choose_weights(mapping.evaluate.weights)[-1]
    # Without controls.facts: their table of false sounds needs the motion of every pixel.
    facts = {
        "checkpoint": str(checkpoint.directory),
        "step": checkpoint.name,
        "weights": weights,
        **data_facts(config, records, split),
        "config": mapping.name,
        "digest": number_digest(mapping),
    }
    find_maps = Evaluator(mapper, mapping, checkpoint, weights, facts)
    tables, notes = {}, list(controls.notes)
    for condition, heard in {TRUE_AUDIO: records, **controls.records}.items():
        with tempfile.TemporaryDirectory() as folder:
            find_maps(heard, condition, [functools.partial(mapper.write_predictions, folder)])
            own = {**facts, "audio": condition}
            tables[condition], read = task.read_predictions(folder, heard, own)
        notes += [note for note in read if note not in notes]
    return Scored(mapping.seed, make_report(task, facts, tables, len(records), notes), tables)


def compare(
    found: Sequence[Scored], task: Task, measures: Sequence[str]
) -> dict[str, list[ablation.Row]]:
    """Measure -> a row per condition; conditions that cover only some of the clips have none."""
    first = found[0].report.scores
    known = ablation.flatten(first[TRUE_AUDIO])
    for measure in measures:
        if measure not in known:
            near = ", ".join(nearest(measure, list(known)) or known)
            raise InputError(f"--measure={measure}: no such measure; nearest: {near}")
    runs: dict[str, list[ablation.Run]] = {measure: [] for measure in measures}
    conditions, all_clips = [], None
    for condition in first:
        scored = [
            ablation.clip_scores(table, task.protocols, measures, task.batches(table))
            for table in (s.tables[condition] for s in found)
        ]
        clips = scored[0][0]
        all_clips = all_clips or clips
        if clips != all_clips:
            print(f"{condition}: only {len(clips)} of the clips, not in the table")
            continue
        conditions.append(condition)
        for (seed, report, _), (names, scores) in zip(found, scored, strict=True):
            numbers = ablation.flatten(report.scores[condition])
            for measure, own in runs.items():
                run = (condition, seed, report.facts, numbers[measure], names, scores[measure])
                own.append(ablation.Run(*run))
    return {
        measure: ablation.make_rows(conditions, TRUE_AUDIO, own) for measure, own in runs.items()
    }


def _define_flags(values: flags.FlagValues) -> None:
    def several(name, default, text):
        flags.DEFINE_multi_string(name, default, text, flag_values=values)

    several("checkpoint", None, "a run of task align; may be given several times")
    several("measure", list(MEASURES), "PROTOCOL/MEASURE; may be given several times")
    flags.DEFINE_string("split", "test", "of the dataset", flag_values=values)
    define_strings(values, {"output": "folder for reports and tables"})


if __name__ == "__main__":
    run_as_program(main, sys.argv)
