"""Evaluation: a checkpoint and a split -> counts of every frame -> every protocol's numbers.

`evaluate` is one pass over a loader; training calls it for validation. `evaluate_config` is the
job of --mode=eval: the split with its true sound, then controls with false sound, against the same
masks. A model that listens scores low on the controls; one that finds salient objects does not
notice.

  true_audio        each clip with its own sound
  swapped_audio     each clip with the sound of a clip of another category
  audio_in_picture  each clip with the sound of a category that its picture shows, silent; only
                    where the records name the objects in them (generated clips do)

Command line: python -m avs_jax.evaluate --config=configs/s4_ama.py --checkpoint=DIR [--split=test]
"""

import hashlib
import io
import json
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict
from tqdm import tqdm

from avs_jax.data.pipeline import EvalBatches, Loader, open_records
from avs_jax.data.sounds import Resounded, silent_audio, swap_audio
from avs_jax.models import build_model
from avs_jax.results import metrics, visualize
from avs_jax.results.postprocess import object_probability, sem_seg
from avs_jax.results.report import REFERENCE, Report, to_text, write
from avs_jax.runtime.checkpoint import FOLDER, find_checkpoint, load_variables, plain_config
from avs_jax.runtime.command_line import parse
from avs_jax.runtime.optim import flatten
from avs_jax.runtime.sharding import AXES, batch_sharding, make_mesh, put_batch, tree_shardings
from avs_jax.runtime.step import init_variables, make_predict_step
from avs_jax.spec import INPUT_FIELDS, InputError

VISIBLE_FIELD = "visible_labels"  # of a record: categories in the picture, where known
NUM_PROBLEMS = 8  # tensors named where a checkpoint does not fit
MASK_STRIDE = 4  # pixels of the padded input per cell of pred_masks


class Evaluation(NamedTuple):
    """Result of one pass: counts of all processes' frames, and pictures by clip id."""

    counts: metrics.FrameCounts
    pictures: dict[str, np.ndarray]


# ---- one pass over a loader ----


def make_score_step(model, config: ConfigDict, mesh: Mesh):
    """The jitted way from a batch to what is scored, forward pass and postprocess in one.

    Args:
      model: Linen module.
      config: the whole configuration; reads evaluate.score_size and data.num_classes.
      mesh: devices that share the batch; each postprocesses its own rows, frame by frame.

    Returns:
      (params, batch_stats, batch) -> {"pred": [B, T, S, S], float32 probability of the object, or
      int32 class where there are more than two; "motion_weight": [B, T, g, g] where AMA is on}.
    """
    predict, binary = make_predict_step(model), config.data.num_classes == 2
    size = config.evaluate.score_size

    def classes(pred_logits, pred_masks, images, valid):
        def fold(x):
            return x.reshape(-1, *x.shape[2:])

        padded = tuple(MASK_STRIDE * n for n in pred_masks.shape[2:4])
        scores = sem_seg(
            fold(pred_logits), fold(pred_masks), padded, images.shape[2:4], size, fold(valid)
        )
        pred = object_probability(scores) if binary else scores.argmax(axis=-1)
        return pred.reshape(*valid.shape, size, size)

    rows = PartitionSpec(AXES)
    classes = jax.shard_map(classes, mesh=mesh, in_specs=(rows,) * 4, out_specs=rows)

    def step(params, batch_stats, batch):
        outputs = predict(params, batch_stats, batch)
        pred = classes(
            outputs["pred_logits"], outputs["pred_masks"], batch["images"], batch["valid"]
        )
        result = {"pred": pred}
        if "motion_weight" in outputs:
            result["motion_weight"] = outputs["motion_weight"]
        return result

    return jax.jit(step, out_shardings=batch_sharding(mesh))


def eval_batch_size(config: ConfigDict, mesh: Mesh) -> int:
    """config.evaluate.batch_size, rounded up to fill every device; no score depends on it."""
    return -(-config.evaluate.batch_size // mesh.size) * mesh.size


def evaluate(
    score_step,
    variables: tuple[Any, Any],
    loader: Iterable[Mapping[str, Any]],
    config: ConfigDict,
    mesh: Mesh,
    *,
    facts: Mapping[str, Any] | None = None,
    title: str = "evaluate",
    num_pictures: int = 0,
) -> Evaluation:
    """One pass over a split. Frames count where they exist and have ground truth.

    Args:
      score_step: from `make_score_step`.
      variables: (params, batch_stats).
      loader: finite; yields evaluation batches (spec.py), this process's rows.
      config: the whole configuration; reads data.num_classes.
      mesh: the one of score_step.
      facts: identify the run in the stored counts.
      title: of the progress line.
      num_pictures: draw the first clips that this process reads (binary task only).

    Returns:
      The same counts on every process, in dataset order.

    Raises:
      ValueError: no valid frame, a clip twice, or probabilities that are NaN.
    """
    counter = metrics.FrameCounter(config.data.num_classes, facts)
    pictures: dict[str, np.ndarray] = {}
    total = len(loader) if hasattr(loader, "__len__") else None
    quiet = jax.process_index() != 0
    for batch in tqdm(loader, desc=title, total=total, unit="batch", disable=quiet, leave=False):
        labels, scored = np.asarray(batch["labels"]), batch["valid"] & batch["supervised"]
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        outputs = score_step(*variables, put_batch(inputs, mesh))
        outputs = {name: _local_rows(value) for name, value in outputs.items()}
        ids, categories = batch["clip_id"], batch["category"]
        counter.add(outputs["pred"], labels, scored, ids, categories, batch["frame_index"])
        for b in range(len(ids)):
            if len(pictures) < num_pictures and scored[b].any():
                pictures[ids[b]] = _picture(batch, outputs, b)
    return Evaluation(_gather(counter.result(), share=len(ids)), pictures)


def _picture(batch, outputs, b: int) -> np.ndarray:
    """The existing frames of row b."""
    keep = np.asarray(batch["valid"][b])
    optional = {
        "log_mel": batch["log_mel"],
        "motion": batch.get("motion"),
        "motion_weight": outputs.get("motion_weight"),
    }
    return visualize.clip_picture(
        np.asarray(batch["images"][b])[keep],
        outputs["pred"][b][keep],
        np.asarray(batch["labels"][b])[keep],
        titles=[f"frame {i}" for i in np.asarray(batch["frame_index"][b])[keep]],
        heading=f"{batch['clip_id'][b]}  ({batch['category'][b]})",
        **{k: None if v is None else np.asarray(v[b])[keep] for k, v in optional.items()},
    )


def _local_rows(x: jax.Array) -> np.ndarray:
    """This process's rows of an array whose first axis is spread over the mesh."""
    shards = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def _gather(counts: metrics.FrameCounts, share: int) -> metrics.FrameCounts:
    """Joins the counts of all processes, on all of them."""
    if jax.process_count() == 1:
        return counts
    buffer = io.BytesIO()
    counts.save(buffer)
    data = np.frombuffer(buffer.getvalue(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([data.size])).ravel()
    padded = np.pad(data, (0, sizes.max() - data.size))
    parts = multihost_utils.process_allgather(padded).reshape(len(sizes), -1)
    files = [io.BytesIO(part[:size].tobytes()) for part, size in zip(parts, sizes, strict=True)]
    return metrics.interleave([metrics.FrameCounts.load(file) for file in files], share)


# ---- the job of --mode=eval ----


def evaluate_config(
    config: ConfigDict,
    checkpoint: str | pathlib.Path,
    output: str | pathlib.Path | None = None,
) -> Report:
    """Evaluates a checkpoint on config.evaluate.split, with true and with false sound.

    Writes OUTPUT/evaluation/STEP/ (STEP_SPLIT/ where the split is not "test"): report.json,
    report.md, counts.npz of the true sound, counts_CONDITION.npz of the controls, and
    pictures/CLIP_CONDITION.png of the first config.evaluate.num_pictures clips, all of them in
    pictures.html too.

    Args:
      config: the whole configuration; its model must be the checkpoint's.
      checkpoint: a working directory (its best checkpoint), one step's directory, or converted
        weights.
      output: directory to write under; the working directory of the checkpoint, or the directory of
        converted weights, when not given.

    Returns:
      The report, which process 0 has also printed and written.

    Raises:
      FileNotFoundError: no checkpoint, or no dataset.
      ValueError: the checkpoint's tensors are not those of config.model; lists them.
    """
    directory = find_checkpoint(checkpoint)
    *variables, trained_config = load_variables(directory)
    mesh, split = make_mesh(config), config.evaluate.split
    model, records = build_model(config.model), open_records(config, split)
    score_step = make_score_step(model, config, mesh)
    facts = {
        "checkpoint": str(directory),
        "step": directory.name if directory.name.isdigit() else "converted",
        "config": config.name,
        "config_sha256": _digest(config),
        "trained_with_sha256": _digest(trained_config),
        "dataset": config.data.dataset,
        "split": split,
        **_dataset_facts(records),
        "score_size": config.evaluate.score_size,
    }
    rows = (eval_batch_size(config, mesh), jax.process_index(), jax.process_count())
    check_variables(model, EvalBatches(records, config, *rows)[0], *variables, directory)
    variables = jax.device_put(tuple(variables), tree_shardings(tuple(variables), mesh))

    def run(condition, pairs=None):
        heard = records if pairs is None else Resounded(records, pairs)
        batches = EvalBatches(heard, config, *rows)
        named = {**facts, "audio": condition}
        title = condition.replace("_", " ")
        with Loader(batches, prefetch=config.data.prefetch) as loader:
            result = evaluate(
                score_step,
                variables,
                loader,
                config,
                mesh,
                facts=named,
                title=title,
                num_pictures=config.evaluate.num_pictures,
            )
        pictures.update({f"{k}_{condition}": v for k, v in result.pictures.items()})
        return result.counts

    pictures: dict[str, np.ndarray] = {}
    counts = {REFERENCE: run(REFERENCE)}
    notes = []
    if config.evaluate.swapped_audio:
        for condition, pairs in _controls(counts[REFERENCE], records, notes).items():
            counts[condition] = run(condition, pairs)
    frames = counts[REFERENCE].valid
    facts |= {"clips": len(counts[REFERENCE].clips()), "frames": int(frames.sum())}
    scores = {condition: metrics.all_protocols(c) for condition, c in counts.items()}
    report = Report(facts, scores, notes)
    if jax.process_index() == 0:
        root = directory.parent.parent if directory.parent.name == FOLDER else directory
        root = root if output is None else pathlib.Path(output).expanduser()
        folder = facts["step"] if split == "test" else f"{facts['step']}_{split}"
        _write(report, counts, pictures, root / "evaluation" / folder)
    return report


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


def _controls(counts, records, notes: list[str]) -> dict[str, list[tuple[int, int]]]:
    """Condition -> (picture, sound) record indices; what cannot be done is noted."""
    ids = [str(counts.clip_id[clip.start]) for clip in counts.clips()]
    categories = {str(i): str(c) for i, c in zip(counts.clip_id, counts.category, strict=True)}
    place = {clip: i for i, clip in enumerate(ids)}
    controls = {}
    try:
        swapped = swap_audio(categories)
        controls["swapped_audio"] = [(i, place[swapped[clip]]) for i, clip in enumerate(ids)]
    except ValueError as error:
        notes.append(f"swapped_audio left out: {error}")
    if not len(records[0].get(VISIBLE_FIELD, ())):
        notes.append(f"audio_in_picture left out: the records leave {VISIBLE_FIELD} empty")
        return controls
    # Reads every record once more, which only generated (small) datasets ask for.
    labels = {clip: int(records[i]["category_label"]) for i, clip in enumerate(ids)}
    visible = {clip: np.asarray(records[i][VISIBLE_FIELD]).tolist() for i, clip in enumerate(ids)}
    heard = silent_audio(labels, visible)
    if heard:
        pairs = [(place[clip], place[heard[clip]]) for clip in ids if clip in heard]
        controls["audio_in_picture"] = pairs
    if len(heard) < len(ids):
        notes.append(
            f"audio_in_picture: {len(heard)} of {len(ids)} clips show a silent object of a "
            "category that sounds elsewhere in the split"
        )
    return controls


def _dataset_facts(records) -> dict[str, Any]:
    """What the builder noted: where the ground truth comes from, how many clips it left out."""
    info = getattr(records, "dataset_info", None)
    metadata = (info.metadata if info is not None else None) or {}
    return {
        "ground_truth": metadata.get("ground_truth", "not named by the dataset"),
        "clips_skipped_when_built": metadata.get("num_skipped", 0),
    }


def _digest(config: ConfigDict) -> str:
    text = json.dumps(plain_config(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _write(report: Report, counts, pictures, folder: pathlib.Path) -> None:
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        visualize.save_png(folder / "pictures" / f"{name}.png", picture)
    heading = f"{report.facts['dataset']}, {report.facts['split']}"
    visualize.save_page(folder / "pictures.html", heading, pictures)
    for condition, c in counts.items():
        c.save(folder / ("counts.npz" if condition == REFERENCE else f"counts_{condition}.npz"))
    write(report, folder)
    print(to_text(report), end="")
    print(f"written: {folder}/report.json, report.md, counts*.npz, {len(pictures)} pictures")


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit status."""

    def define(values):
        flags.DEFINE_string(
            "checkpoint",
            None,
            "working directory, one step's directory, or converted weights",
            flag_values=values,
        )
        flags.DEFINE_string("split", None, "config.evaluate.split if not given", flag_values=values)
        flags.DEFINE_string(
            "output", None, "write under this directory, not the checkpoint's", flag_values=values
        )

    try:
        config, values = parse(argv, define, __doc__, required=["checkpoint"])
        if values.split is not None:
            config.evaluate.split = values.split
        evaluate_config(config, values.checkpoint, values.output)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
