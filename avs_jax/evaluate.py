"""Evaluation: a checkpoint and a split -> one row per scored item -> every protocol's numbers.

One pass (runtime/evaluation.py) scores the unaltered split, and one more each control of the task:
the same ground truth with another input. A model that uses that input scores lower there.

  avs-jax evaluate --checkpoint=DIR [--config=configs/s4_ama.py] [--split=test]
      [--audio=silence,noise,offscreen,shift,late] [--manifest=FILE]

The first start compiles, which takes a minute or more on a CPU; ~/.cache/avs_jax keeps what it
compiled. The same command resumes: conditions that an interrupted evaluation has finished are kept.

Every key that changes a number comes from the checkpoint. --config, by default the checkpoint's own
configuration, chooses the dataset and how it is read. The other keys change only by an override on
the command line (--config.model.dtype=bfloat16), which the report notes.

To score any method's predictions without a model or checkpoint (--config only chooses the dataset
and classes):

  avs-jax evaluate --config=configs/s4_ama.py --predictions=DIR [--split=test]

{predictions}
--write_predictions=DIR writes a checkpoint's predictions in this layout: float32 probabilities as
npy (0.7 GB for S4's test split), classes as png.
"""

import functools
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from avs_jax.controls.false_sounds import own_sound
from avs_jax.data.audio import encode_wav
from avs_jax.data.pipeline import EvalBatches, Loader
from avs_jax.data.records import metadata, open_records, record_name
from avs_jax.files import atomic_folder
from avs_jax.finished_conditions import FinishedConditions, condition_key
from avs_jax.report_identity import (
    check_same_source,
    number_digest,
    predictions_folder,
    report_folder,
)
from avs_jax.results import predictions, visualize
from avs_jax.results.report import Report, to_text, write
from avs_jax.results.report_page import Curves, read_curves, write_page
from avs_jax.runtime.checkpoint import Checkpoint
from avs_jax.runtime.command_line import (
    CommandLine,
    UsageError,
    checkpoint_config,
    exit_status,
    parse,
)
from avs_jax.runtime.compilation_cache import announce_compilation, use_compilation_cache
from avs_jax.runtime.evaluation import Evaluation, eval_batch_size, evaluate, make_eval_step
from avs_jax.runtime.lock import locked
from avs_jax.runtime.sharding import make_mesh, tree_shardings
from avs_jax.runtime.step import init_variables
from avs_jax.spec import SAMPLE_RATE, TRUE_AUDIO
from avs_jax.stopping import run_as_program
from avs_jax.task import Record, Task, stack_rows
from avs_jax.tasks import make_task

SEARCHED = 8  # records per figure that are read for its sound


# ---- evaluating a checkpoint ----


def evaluate_checkpoint(
    config: ConfigDict,
    checkpoint: Checkpoint,
    split: str,
    output: str | pathlib.Path | None = None,
    write_predictions: str | pathlib.Path | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Report]:
    """`evaluate_split` for the parameters, their average, or both (config.evaluate.weights).

    If both, their predictions go to raw/ and ema/ under `write_predictions`.

    Returns:
      {"raw" or "ema": its report}.
    """
    reports, chosen = {}, checkpoint.choose_weights(config.evaluate.weights)
    for weights in chosen:
        folder = write_predictions
        if write_predictions is not None and len(chosen) > 1:
            folder = pathlib.Path(write_predictions) / weights
        reports[weights] = evaluate_split(config, checkpoint, split, weights, output, folder, notes)
    return reports


def evaluate_split(
    config: ConfigDict,
    checkpoint: Checkpoint,
    split: str,
    weights: str,
    output: str | pathlib.Path | None = None,
    write_predictions: str | pathlib.Path | None = None,
    notes: Sequence[str] = (),
    records: Sequence[Record] | None = None,
) -> Report:
    """Evaluates a checkpoint on a split, unaltered and under the task's controls.

    Writes the folder `report_folder` as a whole: report.json, report.md, counts.npz of the
    unaltered split, counts_CONDITION.npz of the controls, figures of the first
    config.evaluate.num_pictures records under pictures/, report.html with these figures, their
    sounds and the curves of the run's training, and the controls' files.

    Args:
      config: the whole configuration.
      checkpoint: provides the parameters.
      split: of the dataset.
      weights: "raw" or "ema".
      output: directory to write under, see `report_folder`.
      write_predictions: directory for the predictions on the unaltered split.
      notes: sentences for the report.
      records: of the split; None opens them.

    Returns:
      The report, which process 0 has also printed and written.

    Raises:
      InputError: `output` has this report of another checkpoint.
    """
    folder = report_folder(config, checkpoint, split, weights, output)
    scored = {"checkpoint": str(checkpoint.directory)}
    if checkpoint.checksum is not None:
        scored["checksum"] = checkpoint.checksum
    if output is not None:
        check_same_source(folder, "checkpoint", scored)
    task = make_task(config)
    if records is None:
        records = open_records(config, split)
    controls = task.controls(records, split)
    facts = {
        **scored,
        "step": checkpoint.name,
        "weights": weights,
        **data_facts(config, records, split),
        "digest": number_digest(config),
        **controls.facts,
    }
    evaluator = Evaluator(task, config, checkpoint, weights, facts)
    conditions = {TRUE_AUDIO: records, **controls.records}
    finished = None
    if jax.process_count() == 1 and checkpoint.checksum is not None:
        key = condition_key(facts, records, config.evaluate.num_pictures)
        finished = FinishedConditions(folder, key, type(task.meter({}).table()))
    results, files = _evaluate_conditions(
        evaluator, task, split, conditions, finished, write_predictions, folder
    )
    tables = {name: result.table for name, result in results.items()}
    report = make_report(task, facts, tables, len(records), [*notes, *controls.notes])
    with locked(folder.parent, "evaluation"):
        if jax.process_index() == 0:
            sounds = {
                name: _sounds(conditions[name], found.figures) for name, found in results.items()
            }
            curves = read_curves(
                checkpoint.run_directory / "metrics.jsonl", next(iter(report.scores[TRUE_AUDIO]))
            )
            _write(report, results, folder, {**controls.files, **files}, sounds, curves, finished)
    return report


def _evaluate_conditions(
    evaluator: "Evaluator",
    task: Task,
    split: str,
    conditions: Mapping[str, Sequence[Record]],
    finished: FinishedConditions | None,
    write_predictions: str | pathlib.Path | None,
    folder: pathlib.Path,
) -> tuple[dict[str, Evaluation], dict[str, str]]:
    """The result of every condition, and the files of the recorders.

    What is finished is kept in `finished`. Where it is None the same command starts over: several
    processes, or a checkpoint without checksums, which another may replace unnoticed.
    """
    results: dict[str, Evaluation] = {}
    files: dict[str, str] = {}
    for condition, records in conditions.items():
        is_unaltered, recorders, observers = condition == TRUE_AUDIO, [], []
        writes = is_unaltered and write_predictions is not None
        if finished and not writes and (kept := finished.load(condition)):
            print(f"{condition}: scored before", file=sys.stderr)
            results[condition] = kept[0]
            files |= kept[1]
            continue
        if is_unaltered:
            recorders = task.recorders(split)
            observers = [recorder.add for recorder in recorders]
        if writes:
            observers.append(functools.partial(task.write_predictions, write_predictions))
        try:
            results[condition] = evaluator(records, condition, observers)
        except KeyboardInterrupt:
            if finished:
                count = f"{len(results)} of {len(conditions)} conditions are kept"
                print(f"{folder}: {count}; the same command resumes", file=sys.stderr)
            raise
        found = {k: text for recorder in recorders for k, text in recorder.files().items()}
        files |= found
        if finished:
            finished.save(condition, results[condition], found)
    return results, files


class Evaluator:
    """A checkpoint's model; call it once per condition."""

    def __init__(
        self,
        task: Task,
        config: ConfigDict,
        checkpoint: Checkpoint,
        weights: str,
        facts: Mapping[str, Any],
    ):
        self._task, self._config, self._facts = task, config, facts
        self._mesh = make_mesh(config)
        example = task.inputs(stack_rows([task.rows.empty(train=False)], task.rows.fields))
        if jax.process_index() == 0:
            announce_compilation("the evaluation")
        checkpoint.check_fits(*jax.eval_shape(lambda: init_variables(task.model, example, 0)))
        variables = checkpoint.variables(weights)
        self._variables = jax.device_put(variables, tree_shardings(variables, self._mesh))
        self._step = make_eval_step(task, self._mesh)

    def __call__(
        self,
        records: Sequence[Record],
        condition: str,
        observers: Sequence[Callable] = (),
    ) -> Evaluation:
        """One pass over records, altered as `condition` names."""
        config, task = self._config, self._task
        size = eval_batch_size(config, self._mesh)
        batches = EvalBatches(records, task.rows, size, jax.process_index(), jax.process_count())
        with Loader(batches, prefetch=config.data.prefetch) as loader:
            return evaluate(
                task,
                self._step,
                self._variables,
                loader,
                self._mesh,
                facts={**self._facts, "audio": condition},
                title=condition.replace("_", " "),
                num_figures=config.evaluate.num_pictures,
                observers=observers,
                records=records,
            )


# ---- scoring files of predictions ----


def evaluate_predictions(
    config: ConfigDict,
    directory: str | pathlib.Path,
    split: str,
    output: str | pathlib.Path | None = None,
) -> Report:
    """Scores files of predictions against a split, by every protocol.

    Writes OUTPUT/evaluation/DATASET_SPLIT_DIGEST/: report.json, report.md and counts.npz.

    Args:
      config: as for the task's rows and protocols.
      directory: of the predictions, in the task's layout.
      split: of the dataset.
      output: directory to write under; by default `directory`, or the folder of that file.

    Returns:
      The report, also printed and written.

    Raises:
      InputError: `output` has this report of other predictions.
    """
    directory = pathlib.Path(directory).expanduser().resolve()
    if output is None and directory.is_file():
        output = directory.parent
    folder = predictions_folder(config, directory if output is None else output, split)
    scored = {"predictions": str(directory)}
    if output is not None:
        check_same_source(folder, "predictions", scored)
    task, records = make_task(config), open_records(config, split)
    facts = {**scored, **data_facts(config, records, split)}
    table, notes = task.read_predictions(directory, records, facts)
    report = make_report(task, facts, {"predictions": table}, len(records), notes)
    with locked(folder.parent, "evaluation"):
        _write(report, {"predictions": Evaluation(table, {})}, folder, {})
    return report


# ---- the report ----


def make_report(
    task: Task,
    facts: Mapping[str, Any],
    tables: Mapping[str, Any],
    num_records: int,
    notes: Sequence[str] = (),
) -> Report:
    """Every protocol's numbers for every condition; the first one is the reference."""
    sizes = task.sizes(next(iter(tables.values())), num_records)
    scores = {name: task.protocols(table) for name, table in tables.items()}
    return Report({**facts, **sizes}, scores, list(notes), task.summarize(tables, facts))


def data_facts(config: ConfigDict, records: Sequence[Record], split: str) -> dict[str, Any]:
    """What is scored: configuration, dataset, split, source of the ground truth, skipped clips."""
    noted = metadata(records)
    return {
        "config": config.name,
        "dataset": config.data.dataset,
        "split": split,
        "ground_truth": noted.get("ground_truth", "not named by the dataset"),
        "clips_skipped_when_built": noted.get("num_skipped", 0),
    }


def _write(
    report: Report,
    results: Mapping[str, Evaluation],
    folder: pathlib.Path,
    files: Mapping[str, str],
    sounds: Mapping[str, Mapping[str, bytes]] | None = None,
    curves: Curves | None = None,
    finished: FinishedConditions | None = None,
) -> None:
    figures = {f"{k}_{name}": v for name, r in results.items() for k, v in r.figures.items()}
    wav_files = {f"{k}_{name}": v for name, each in (sounds or {}).items() for k, v in each.items()}
    with atomic_folder(folder) as fresh:
        for i, (name, result) in enumerate(results.items()):
            result.table.save(fresh / (f"counts_{name}.npz" if i else "counts.npz"))
        for name, text in files.items():
            (fresh / name).write_text(text)
        if figures:
            (fresh / "pictures").mkdir()
            for name, figure in figures.items():
                visualize.save_png(fresh / "pictures" / f"{name}.png", figure)
        write(report, fresh)
        write_page(report, fresh, figures, wav_files, curves or {})
        if finished is not None:  # before the report appears: a kill then leaves nothing of them
            finished.remove()
    print(to_text(report), end="")
    written = "report.json, report.md, report.html, counts*.npz"
    print(f"written: {folder}/{written}, {len(figures)} pictures")


def encode_sound(record: Record) -> bytes:
    """The sound of a record as a mono WAV file."""
    samples = np.clip(32768 * own_sound(record), -32768, 32767).astype(np.int16)
    return encode_wav(samples, SAMPLE_RATE)


def _sounds(records: Sequence[Record], figures: Mapping[str, Any]) -> dict[str, bytes]:
    """WAV files of the records that have a figure, by the figure's name.

    Figures are of the first records that have ground truth, so only the first records are read.
    """
    sounds: dict[str, bytes] = {}
    for index in range(min(len(records), SEARCHED * len(figures))):
        record = records[index]
        name = record_name(record)
        if name in figures and "waveform" in record:
            sounds[name] = encode_sound(record)
        if len(sounds) == len(figures):
            break
    return sounds


# ---- command line ----


def main(argv: Sequence[str]) -> int:
    """Evaluates; returns the exit status."""
    description = __doc__.replace("{predictions}", predictions.__doc__.partition("\n\n")[2])
    return exit_status(lambda: run(parse(argv, _define_flags, description, needs_config=False)))


def run(line: CommandLine) -> None:
    """`main` after parsing, with exceptions."""
    values = line.values
    given = [name for name in ("checkpoint", "predictions") if getattr(values, name)]
    if len(given) != 1:
        raise UsageError("either --checkpoint or --predictions; --help lists the flags")
    if values.predictions:
        if values.write_predictions:
            raise UsageError("--write_predictions writes those of a --checkpoint")
        if line.config is None:
            raise UsageError("--config is missing: it says which dataset the predictions are of")
        checkpoint, config, notes = None, line.config, []
    else:
        checkpoint = Checkpoint.find(values.checkpoint)
        config, notes = checkpoint_config(line, checkpoint)
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
    for name in ("audio", "manifest"):
        if values[name].value is not None:
            if name not in config.evaluate:
                raise UsageError(f"--{name}: task {config.task!r} has no such controls")
            config.evaluate[name] = values[name].value
    split = values.split or config.evaluate.split
    if checkpoint is not None:
        use_compilation_cache()
        evaluate_checkpoint(
            config, checkpoint, split, values.output, values.write_predictions, notes
        )
        return
    if values.audio or "evaluate.audio" in line.overridden:  # recipes may ask for false sounds
        raise UsageError(
            "--audio needs --checkpoint: stored predictions cannot react to another sound"
        )
    evaluate_predictions(config, values.predictions, split, values.output)


def _define_flags(values: flags.FlagValues) -> None:
    def define(name, text):
        flags.DEFINE_string(name, None, text, flag_values=values)

    define("checkpoint", "working directory, one step's directory, or converted weights")
    define("predictions", "score the files under this directory instead of a checkpoint")
    define("split", "default: config.evaluate.split")
    define(
        "audio",
        "also score false sounds, any of silence,noise,offscreen,shift,late; default: "
        "config.evaluate.audio",
    )
    define(
        "manifest",
        "false sounds of an earlier report's manifest.json; default: config.evaluate.manifest",
    )
    define("output", "write under this directory, not the checkpoint's or the predictions'")
    define("write_predictions", "write the checkpoint's predictions under this directory")


if __name__ == "__main__":
    run_as_program(main, sys.argv)
