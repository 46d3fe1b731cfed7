"""Task `ground`: when in a video a query happens, and how salient each moment is to it."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from avs_jax.controls.moment_controls import moment_controls
from avs_jax.data.moments import MomentRows
from avs_jax.data.records import metadata
from avs_jax.inference import moment_video
from avs_jax.losses import moments as losses
from avs_jax.models import build_model
from avs_jax.models.qd_detr import QDDETR
from avs_jax.results import moments, windows
from avs_jax.results.gate_log import GateLog, flatten_gates, gate_log_text
from avs_jax.results.moment_figure import strip_chart
from avs_jax.results.table import interleave
from avs_jax.spec import InputError
from avs_jax.task import Controls, PredictFlag, Task

PREDICT_FLAGS = {"text": PredictFlag("what to look for", is_repeated=True)}
PREDICT_HELP = moment_video.__doc__

OUTPUTS = ("pred_logits", "pred_spans", "saliency_scores", "gates")
ROW_KEYS = (  # of config.data, that rows are made by
    "max_clips max_words max_windows video_dims text_dim audio_dim energy clip_seconds normalize "
    "normalize_text endpoints saliency num_pairs num_annotators"
).split()


def make_task(config: ConfigDict) -> Task:
    """The task under one configuration.

    Raises:
      InputError: an unknown part or protocol, or a value that cannot be.
    """
    if config.evaluate.protocol not in PROTOCOLS:
        raise InputError(
            f"config.evaluate.protocol = {config.evaluate.protocol!r}: choose one of "
            f"{sorted(PROTOCOLS)}"
        )
    data, fusion = config.data.copy_and_resolve_references(), config.model.fusion
    rows = MomentRows(**{key: data[key] for key in ROW_KEYS})
    if data.max_clips > fusion.get("max_length", data.max_clips):
        raise InputError(
            f"config.model.fusion.max_length = {fusion.max_length}: expected at least "
            f"config.data.max_clips = {data.max_clips}, as every clip has a learned position"
        )
    post_process = windows.PostProcess(**config.evaluate.post_process)
    return Task(
        name="ground",
        rows=rows,
        model=build_model(config.model, QDDETR),
        loss=functools.partial(losses.compute_losses, loss_config=config.loss),
        norms=None,
        rng_streams=("dropout", "loss"),
        outputs=OUTPUTS,
        score=_flat,
        derive=_flat,
        meter=functools.partial(windows.MomentMeter, post_process),
        protocols=PROTOCOLS[config.evaluate.protocol],
        measure="mAP",
        join=functools.partial(interleave, by="qid"),
        sizes=_sizes,
        controls=functools.partial(_controls, config),
        recorders=functools.partial(_recorders, config),
        read_predictions=functools.partial(_read_predictions, rows=rows),
        write_predictions=_SubmissionWriter(post_process),
        draw=functools.partial(_draw, post_process, data.clip_seconds),
        array_inputs=functools.partial(
            moment_video.complete_arrays, bool(data.audio_dim) and fusion.name == "concat"
        ),
        predict_video=functools.partial(moment_video.predict_moments, post_process=post_process),
        weight_files=("qd_detr",),
        predict_flags=tuple(PREDICT_FLAGS),
    )


def _flat(outputs: Mapping[str, Any], inputs: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The outputs with the gates by layer and name, as "gates/0/gate_mha"."""
    del inputs
    flat = {name: value for name, value in outputs.items() if name != "gates"}
    return flat | flatten_gates(outputs.get("gates", ()))


def _qvhighlights(table: moments.MomentTable) -> dict[str, dict[str, float | None]]:
    scored = moments.with_windows(table)
    numbers = {"moments": moments.moments(scored)}
    numbers |= {
        f"moments({length})": moments.moments(scored, length)
        for length in moments.LENGTHS
        if length != "full"
    }
    domains = np.unique(table["domain"]) if "domain" in table.columns else ()
    if len(domains) > 1:
        numbers |= {
            f"moments(domain {domain})": moments.moments(scored.take(scored["domain"] == domain))
            for domain in domains
        }
    return numbers | {
        f"highlights({level})": moments.highlights(table, level)
        for level in moments.HIGHLIGHT_LEVELS
    }


def _tvsum(table: moments.MomentTable) -> dict[str, dict[str, float | None]]:
    return {"tvsum(top 5)": moments.tvsum(table)}


PROTOCOLS: dict[str, Callable] = {"qvhighlights": _qvhighlights, "tvsum": _tvsum}


def _sizes(table: moments.MomentTable, num_records: int) -> dict[str, int]:
    if len(table) < num_records:
        raise InputError(f"{num_records - len(table)} of {num_records} records have no qid")
    sizes = {"queries": len(table), "videos": len(np.unique(table["vid"]))}
    cut = int(np.count_nonzero(table["cut_words"])) if "cut_words" in table.columns else 0
    return sizes | ({"queries cut to max_words": cut} if cut else {})


def _controls(config: ConfigDict, records: Sequence[Mapping[str, Any]], split: str) -> Controls:
    stored = metadata(records).get("features", {})
    made = config.data.features.to_dict() if "features" in config.data else {}
    differing = [key for key in stored if key in made and stored[key] != made[key]]
    if differing:
        key = differing[0]
        raise InputError(
            f"config.data.features.{key} = {made[key]!r}, but the records of "
            f"{config.data.dataset} were made with {stored[key]!r}"
        )
    return moment_controls(bool(config.data.audio_dim), records, split)


def _draw(
    post_process: windows.PostProcess,
    clip_seconds: float,
    scores: Mapping[str, np.ndarray],
    batch: Mapping[str, Any],
    row: int,
    title: str,
    records: Sequence[Mapping[str, Any]],
) -> dict[str, np.ndarray]:
    """A strip chart of one row of an evaluation batch, {} for padding."""
    del records
    qid, duration = batch["qid"][row], batch["duration"][row]
    if not qid:
        return {}
    logits, spans = scores["pred_logits"][row], scores["pred_spans"][row]
    query = {
        "text": batch["query"][row],
        "windows": post_process.windows(np.asarray(logits), np.asarray(spans), duration),
        "saliency": np.asarray(scores["saliency_scores"][row])[
            np.asarray(batch["video_mask"][row])
        ],
        "truth": batch["windows"][row],
    }
    heading = f"{batch['vid'][row]}, {title}"
    return {str(qid): strip_chart([query], clip_seconds, duration, heading=heading)}


def _recorders(config: ConfigDict, split: str) -> list:
    if not config.evaluate.gates:
        return []
    if config.model.fusion.name == "concat":
        raise InputError("config.evaluate.gates: the fusion 'concat' has no gates to log")
    log = GateLog(config.model.fusion.name, config.evaluate.gates, config.evaluate.every_channel)
    return [_GateRecorder(log, split, config.evaluate.gates)]


class _GateRecorder:
    """Logs gates during an evaluation, for the report's folder.

    A process logs its own queries, and process 0 writes; the file's name says so.
    """

    def __init__(self, log: GateLog, split: str, num_samples: int):
        self.add, self._log = log.add, log
        count, processes = "all" if num_samples < 0 else num_samples, jax.process_count()
        share = f"_process{jax.process_index()}of{processes}" if processes > 1 else ""
        self._name = f"gate_logs_{split}_N{count}{share}.jsonl"

    def files(self) -> dict[str, str]:
        """Name -> text."""
        return {self._name: gate_log_text(self._log.lines)}


def _read_predictions(
    path: Any, records: Sequence[Mapping[str, Any]], facts: Mapping[str, Any], *, rows: MomentRows
) -> tuple[moments.MomentTable, list[str]]:
    truth = [rows.truth(record) for record in records]
    table = windows.read_submission(path, truth)
    return moments.MomentTable(table.columns, {**facts, **table.facts}), []


class _SubmissionWriter:
    """Writes DIRECTORY/submission.jsonl, growing with every batch."""

    def __init__(self, post_process: windows.PostProcess):
        self._meters: dict[str, windows.MomentMeter] = {}
        self._post_process = post_process

    def __call__(self, directory: Any, scores: Mapping[str, Any], batch: Mapping[str, Any]) -> None:
        meter = self._meters.setdefault(str(directory), windows.MomentMeter(self._post_process))
        meter.add(scores, batch)
        windows.write_submission(meter.table(), f"{directory}/submission.jsonl")
