"""Evaluation: a checkpoint and a split -> counts of every frame -> every protocol's numbers.

`evaluate_config` is the job of --mode=eval: one pass (runtime/scoring.py) over the split with its
true sound, then one per condition with false sound, against the same masks. A model that listens
scores low there; one that finds salient objects does not notice. data/conditions.py lists them.

  python -m avs_jax.evaluate --config=configs/s4_ama.py --checkpoint=DIR [--split=test]
      [--audio=silence,noise,offscreen,shift] [--manifest=FILE]

The numbers of anybody's predictions, without model or checkpoint; --config chooses dataset and
classes only:

  python -m avs_jax.evaluate --config=configs/s4_ama.py --predictions=DIR [--split=test]

{predictions}
--write_predictions=DIR writes a checkpoint's predictions under true sound in this layout: float32
probabilities as npy (S4's test split: 0.7 GB), classes as png.
"""

import functools
import hashlib
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from tqdm import tqdm

from avs_jax.data import conditions, negative_audio, predictions
from avs_jax.data.clip import Record, decode_text, empty_clip, prepare_labels
from avs_jax.data.pipeline import EvalBatches, Loader, metadata, open_records, stack_clips
from avs_jax.data.predictions import PredictionFiles, write_batch
from avs_jax.models import build_model
from avs_jax.results import negatives, visualize
from avs_jax.results.counts import FrameCounter, FrameCounts
from avs_jax.results.metrics import all_protocols
from avs_jax.results.report import Report, to_text, write
from avs_jax.runtime.checkpoint import FOLDER, find_checkpoint, load_variables, stored_weights
from avs_jax.runtime.command_line import UsageError, parse
from avs_jax.runtime.optim import flatten
from avs_jax.runtime.scoring import Evaluation, eval_batch_size, evaluate, make_score_step
from avs_jax.runtime.sharding import make_mesh, tree_shardings
from avs_jax.runtime.step import init_variables
from avs_jax.runtime.stored_config import plain_config
from avs_jax.spec import INPUT_FIELDS, REFERENCE, InputError

NUM_PROBLEMS = 8  # tensors named where a checkpoint does not fit
LOADING = (("evaluate", "batch_size"), ("data", "num_workers"), ("data", "prefetch"))


# ---- the job of --mode=eval ----


def evaluate_weights(
    config: ConfigDict,
    checkpoint: str | pathlib.Path,
    output: str | pathlib.Path | None = None,
    write_predictions: str | pathlib.Path | None = None,
) -> dict[str, Report]:
    """`evaluate_config` of the parameters and of their average, as config.evaluate.weights asks.

    Where it is both, their predictions go to folders of `write_predictions` of their own, raw/ and
    ema/.

    Returns:
      {"raw" or "ema": its report}.
    """
    reports, chosen = {}, stored_weights(checkpoint, config.evaluate.weights)
    for weights in chosen:
        config = config.copy_and_resolve_references()
        config.evaluate.weights = weights
        predictions_dir = write_predictions
        if write_predictions is not None and len(chosen) > 1:
            predictions_dir = pathlib.Path(write_predictions) / weights
        reports[weights] = evaluate_config(config, checkpoint, output, predictions_dir)
    return reports


def evaluate_config(
    config: ConfigDict,
    checkpoint: str | pathlib.Path,
    output: str | pathlib.Path | None = None,
    write_predictions: str | pathlib.Path | None = None,
) -> Report:
    """Evaluates a checkpoint on config.evaluate.split, with true and with false sound.

    Writes OUTPUT/evaluation/STEP/ (STEP_SPLIT/ where the split is not "test", and _ema behind it
    where the average of the parameters was evaluated): report.json, report.md, counts.npz of the
    true sound, counts_CONDITION.npz of the controls, and pictures/CLIP_CONDITION.png of the first
    config.evaluate.num_pictures clips, all of them in pictures.html too; with negative audio
    manifest.json, the pairing that config.evaluate.manifest reads.

    Args:
      config: the whole configuration; its model must be the checkpoint's.
      checkpoint: a working directory (its best checkpoint), one step's directory, or converted
        weights.
      output: directory to write under; the working directory of the checkpoint, or the directory of
        converted weights, when not given.
      write_predictions: directory for the predictions under true sound (data/predictions.py).

    Returns:
      The report, which process 0 has also printed and written.

    Raises:
      FileNotFoundError: no checkpoint, or no dataset.
      ValueError: the checkpoint's tensors are not those of config.model; lists them. A type of
        negative audio that does not exist; a manifest of other clips.
    """
    split = config.evaluate.split
    records = open_records(config, split)
    facts = data_facts(config, records)
    manifest = conditions.pairing_manifest(config, records)
    if manifest is not None:
        facts["manifest_sha256"] = manifest["sha256"]
        facts["moving_threshold"] = config.evaluate.moving_threshold
    scorer = Scorer(config, checkpoint, facts)
    results = {REFERENCE: scorer(records, REFERENCE, write_predictions)}
    counts = results[REFERENCE].counts
    _check_clips(counts, records)
    categories = dict(zip(map(str, counts.clip_id), map(str, counts.category), strict=True))
    others, notes = conditions.find_conditions(config, records, categories, manifest)
    results |= {name: scorer(heard, name) for name, heard in others.items()}
    report = make_report(scorer.facts, {name: r.counts for name, r in results.items()}, notes)
    folder = find_report(config, checkpoint, output).parent
    if jax.process_index() == 0:
        _write(report, results, folder)
        if manifest is not None:
            negative_audio.save_manifest(manifest, folder / "manifest.json")
    return report


def find_report(
    config: ConfigDict,
    checkpoint: str | pathlib.Path,
    output: str | pathlib.Path | None = None,
) -> pathlib.Path:
    """The report.json that `evaluate_config` writes, there or not; arguments as there."""
    directory = find_checkpoint(checkpoint)
    name, split = _step_name(directory), config.evaluate.split
    weights = stored_weights(directory, config.evaluate.weights)[-1]
    name += ("" if split == "test" else f"_{split}") + ("" if weights == "raw" else f"_{weights}")
    root = _run_directory(directory) if output is None else pathlib.Path(output).expanduser()
    return root / "evaluation" / name / "report.json"


def _step_name(directory: pathlib.Path) -> str:
    return directory.name if directory.name.isdigit() else "converted"


def _run_directory(directory: pathlib.Path) -> pathlib.Path:
    return directory.parent.parent if directory.parent.name == FOLDER else directory


class Scorer:
    """A checkpoint's model, ready to go over records: call it once per condition.

    Attributes:
      facts: identify checkpoint and configuration, and what was handed in.
    """

    def __init__(
        self, config: ConfigDict, checkpoint: str | pathlib.Path, facts: Mapping[str, Any]
    ):
        """Loads and checks; arguments as for `evaluate_config`, facts of the data."""
        step = find_checkpoint(checkpoint)
        weights = stored_weights(step, config.evaluate.weights)[-1]
        *variables, trained_config = load_variables(step, weights)
        model, self._config, self._mesh = build_model(config.model), config, make_mesh(config)
        example = stack_clips([empty_clip(config, is_training=False)])
        check_variables(model, example, *variables, step)
        variables = tuple(variables)
        self._variables = jax.device_put(variables, tree_shardings(variables, self._mesh))
        self._step = make_score_step(model, config, self._mesh)
        self.facts = {
            "checkpoint": str(step),
            "step": _step_name(step),
            "weights": weights,
            "trained_with_sha256": _digest(plain_config(trained_config)),
            **facts,
        }

    def __call__(
        self,
        records: Sequence[Record],
        condition: str,
        write_predictions: str | pathlib.Path | None = None,
    ) -> Evaluation:
        """One pass.

        Args:
          records: of the split, or of a condition.
          condition: names what was done to the records.
          write_predictions: directory for the predictions, or None.
        """
        each_batch = None
        if write_predictions is not None:
            directory = pathlib.Path(write_predictions).expanduser()
            each_batch = functools.partial(write_batch, directory, self._config)
        config, size = self._config, eval_batch_size(self._config, self._mesh)
        batches = EvalBatches(records, config, size, jax.process_index(), jax.process_count())
        with Loader(batches, prefetch=config.data.prefetch) as loader:
            return evaluate(
                self._step,
                self._variables,
                loader,
                config,
                self._mesh,
                facts={**self.facts, "audio": condition},
                title=condition.replace("_", " "),
                num_pictures=config.evaluate.num_pictures,
                each_batch=each_batch,
                find_flow=functools.partial(_stored_flow, records),
            )


def _stored_flow(records: Sequence[Record], clip_id: str) -> np.ndarray | None:
    """(u, v) [T, H, W, 2] px of a clip, None where vectors are not stored; for the first clips."""
    record = next(record for record in records if decode_text(record["clip_id"]) == clip_id)
    flow = np.asarray(record["flow"])
    return flow if flow.shape[-1] == 2 else None


# ---- anybody's predictions ----


def evaluate_predictions(
    config: ConfigDict,
    directory: str | pathlib.Path,
    output: str | pathlib.Path | None = None,
) -> Report:
    """Scores files of predictions against config.evaluate.split, by every protocol.

    Writes OUTPUT/evaluation/SPLIT/: report.json, report.md and counts.npz.

    Args:
      config: reads data.dataset, data.data_dir, data.num_frames, data.num_classes and evaluate.
      directory: laid out as data/predictions.py says.
      output: directory to write under; that of the predictions, when not given.

    Returns:
      The report, also printed and written.

    Raises:
      FileNotFoundError: no predictions, or no dataset.
      InputError: lists every file that is missing, superfluous or unreadable.
    """
    records = open_records(config, config.evaluate.split)
    files = PredictionFiles(directory, config)
    facts = {"predictions": str(directory), **data_facts(config, records)}
    del facts["config_sha256"]  # of a model that has no part in this
    counter = FrameCounter(config.data.num_classes, facts)
    for record in tqdm(records, desc="predictions", unit="clip", disable=None, leave=False):
        truth = prepare_labels(record, config)
        counter.add(files.read_clip(truth)[None], stack_clips([truth]))
    files.finish()
    counts, notes = counter.result(), []
    _check_clips(counts, records)
    if files.num_resized:
        notes.append(
            f"{files.num_resized} of {files.num_read} files resized to "
            f"{config.evaluate.score_size} px: masks and classes by the nearest pixel, "
            "probabilities and scores bilinearly"
        )
    report = make_report(facts, {"predictions": counts}, notes)
    root = pathlib.Path(directory if output is None else output).expanduser()
    results = {"predictions": Evaluation(counts, {})}
    _write(report, results, root / "evaluation" / config.evaluate.split)
    return report


# ---- the report ----


def make_report(
    facts: Mapping[str, Any], counts: Mapping[str, FrameCounts], notes: Sequence[str] = ()
) -> Report:
    """Every protocol's numbers of every condition, the first of which is the reference.

    Where the facts name a manifest, those of the negative audio too.
    """
    first = next(iter(counts.values()))
    sizes = {"clips": len(first.clips()), "frames": int(first.valid.sum())}
    scores = {name: all_protocols(c) for name, c in counts.items()}
    numbers = None
    if "manifest_sha256" in facts:
        mentioned = {name: facts[name] for name in ("manifest_sha256", "moving_threshold")}
        mentioned["task"] = "semantic" if first.is_semantic else "binary"
        numbers = negatives.summarise(counts) | {"facts": mentioned}
    return Report({**facts, **sizes}, scores, list(notes), numbers)


def check_variables(model, batch, params, batch_stats, directory) -> None:
    """Raises where loaded variables are not what the model declares.

    Args:
      model: Linen module.
      batch: one batch that it reads.
      params, batch_stats: nested, loaded.
      directory: where they came from, for the message.

    Raises:
      InputError: counting the tensors that are missing, superfluous or of another shape; names the
        first of them.
    """
    inputs = {name: batch[name] for name in INPUT_FIELDS if name in batch}
    wanted = jax.eval_shape(lambda x: init_variables(model, x, 0), inputs)
    problems = []
    for want, have in zip(wanted, (params, batch_stats), strict=True):
        want = {path: tuple(x.shape) for path, x in flatten(want).items()}
        have = {path: tuple(x.shape) for path, x in flatten(have).items()}
        for path in sorted(want.keys() | have.keys()):
            if want.get(path) != have.get(path):
                loaded, declared = have.get(path, "absent"), want.get(path, "absent")
                problems.append(f"{path}: {loaded} in the checkpoint, {declared} in config.model")
    if problems:
        shown = [*problems[:NUM_PROBLEMS], "..."] if len(problems) > NUM_PROBLEMS else problems
        raise InputError(
            f"{directory} does not fit config.model, {len(problems)} tensor(s):\n  "
            + "\n  ".join(shown)
        )


# ---- facts and files ----


def data_facts(config: ConfigDict, records: Sequence[Record]) -> dict[str, Any]:
    """What is scored: configuration, dataset, split, and what its builder noted (the source of the
    ground truth, how many clips it left out)."""
    noted = metadata(records)
    plain = plain_config(config)
    scored = {"name": plain["name"], "model": plain["model"], "data": plain["data"]}
    scored["evaluate"] = plain["evaluate"]
    for section, name in LOADING:  # no score depends on them
        scored[section] = {k: v for k, v in scored[section].items() if k != name}
    return {
        "config": config.name,
        "config_sha256": _digest(scored),
        "dataset": config.data.dataset,
        "split": config.evaluate.split,
        "ground_truth": noted.get("ground_truth", "not named by the dataset"),
        "clips_skipped_when_built": noted.get("num_skipped", 0),
        "score_size": config.evaluate.score_size,
    }


def _check_clips(counts: FrameCounts, records: Sequence[Record]) -> None:
    num_missing = len(records) - len(counts.clips())
    if num_missing:
        raise InputError(
            f"{num_missing} of {len(records)} clips have no ground truth: nothing to score them by"
        )


def _digest(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def _write(report: Report, results: Mapping[str, Evaluation], folder: pathlib.Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, (name, result) in enumerate(results.items()):
        result.counts.save(folder / (f"counts_{name}.npz" if i else "counts.npz"))
    pictures = {f"{k}_{name}": v for name, r in results.items() for k, v in r.pictures.items()}
    if pictures:
        (folder / "pictures").mkdir(exist_ok=True)
        for name, picture in pictures.items():
            visualize.save_png(folder / "pictures" / f"{name}.png", picture)
        heading = f"{report.facts['dataset']}, {report.facts['split']}"
        visualize.save_page(folder / "pictures.html", heading, pictures)
    write(report, folder)
    print(to_text(report), end="")
    print(f"written: {folder}/report.json, report.md, counts*.npz, {len(pictures)} pictures")


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    try:
        description = __doc__.replace("{predictions}", predictions.__doc__.partition("\n\n")[2])
        config, values = parse(argv, _define_flags, description)
        given = [name for name in ("checkpoint", "predictions") if getattr(values, name)]
        if len(given) != 1:
            raise UsageError("either --checkpoint or --predictions; --help lists the flags")
        if values.predictions and values.write_predictions:
            raise UsageError("--write_predictions writes those of a --checkpoint")
        for name in ("split", "audio", "manifest"):
            if values[name].value is not None:
                config.evaluate[name] = values[name].value
        if values.predictions and config.evaluate.audio:
            raise UsageError("negative audio needs a --checkpoint that can hear it")
        if values.predictions:
            evaluate_predictions(config, values.predictions, values.output)
        else:
            evaluate_weights(config, values.checkpoint, values.output, values.write_predictions)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _define_flags(values: flags.FlagValues) -> None:
    def define(name, text):
        flags.DEFINE_string(name, None, text, flag_values=values)

    define("checkpoint", "working directory, one step's directory, or converted weights")
    define("predictions", "score the files under this directory instead of a checkpoint")
    define("split", "config.evaluate.split if not given")
    define(
        "audio",
        "also score false sounds, any of silence,noise,offscreen,shift; config.evaluate.audio if "
        "not given",
    )
    define(
        "manifest",
        "which clip gets which false sound, as an earlier report wrote it; "
        "config.evaluate.manifest if not given",
    )
    define("output", "write under this directory, not the checkpoint's or the predictions'")
    define("write_predictions", "write the checkpoint's predictions under this directory")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
