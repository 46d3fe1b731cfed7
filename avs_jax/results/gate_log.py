"""The log of a gated fusion: how far each layer lets each sample's sound through.

A JSON Lines file, one sample per line; floats have the precision of float32:

  {"qid": "7", "vid": "abc", "gating_type": "clipwise",
   "layer_gates": [{"gate_mha": VALUES, "gate_ffn": VALUES}, ...],
   "energy": [-3.1, ...], "gt": {"duration": 150.0, "windows": [[0.0, 12.0], ...]}}

VALUES are nested lists [positions, channels]: [1, 1] of a global gate, [clips, 1] of one per clip.
For a gate per channel (75 x 256 numbers a layer) the log has {"mean": [positions], "std": ...,
"min": ..., "max": ...} over channels, or everything on request. Positions are the clips that exist;
`energy` is the log-RMS of their sound, null where it is unknown.

Source: the logs of a fork of QD-DETR with AVIGATE's gates; energy, gt and statistics are ours. The
fork stops evaluating after N logged samples, here only the log stops.
"""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from avs_jax.files import read_regular
from avs_jax.spec import Array, InputError, first_line

STATISTICS = {"mean": np.mean, "std": np.std, "min": np.min, "max": np.max}
_PREFIX = "gates/"

Line = Mapping[str, Any]


def flatten_gates(layers: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """A model's gates, by layer and name, as arrays that can be scored: "gates/0/gate_mha", ..."""
    return {
        f"{_PREFIX}{i}/{name}": gate
        for i, layer in enumerate(layers)
        for name, gate in layer.items()
    }


class GateLog:
    """Collects the gates of an evaluation, batch by batch."""

    def __init__(self, gating_type: str, num_samples: int = -1, every_channel: bool = False):
        """num_samples: the first that are logged; -1 logs all. every_channel: no statistics."""
        self._gating_type, self._every_channel = gating_type, every_channel
        self._num_samples = num_samples
        self.lines: list[Line] = []  # what was logged, in the order in which it was added

    def add(self, scores: Mapping[str, np.ndarray], batch: Mapping[str, Any]) -> None:
        """Logs the rows of an evaluation batch (data/moments.py) that have a qid.

        Args:
          scores: reads what `flatten_gates` names, [B, L or 1, D or 1].
        """
        for b, qid in enumerate(batch["qid"]):
            if not qid or len(self.lines) == self._num_samples:
                continue
            mask = np.asarray(batch["video_mask"][b])
            energy = np.asarray(batch["energy"][b])[mask].tolist() if "energy" in batch else None
            layers: dict[str, dict[str, Any]] = {}
            for path, gate in scores.items():
                if path.startswith(_PREFIX):
                    layer, name = path.removeprefix(_PREFIX).split("/")
                    values = self._values(np.asarray(gate[b]), mask)
                    layers.setdefault(layer, {})[name] = values
            windows = np.asarray(batch["windows"][b]).tolist()
            line = {"qid": str(qid), "vid": str(batch["vid"][b]), "gating_type": self._gating_type}
            line["layer_gates"] = [layers[str(i)] for i in range(len(layers))]
            truth = {"duration": float(batch["duration"][b]), "windows": windows}
            self.lines.append(line | {"energy": energy, "gt": truth})

    def _values(self, gate: np.ndarray, mask: np.ndarray) -> Any:
        """[L or 1, D or 1] of one sample as the log has it."""
        gate = gate[mask] if len(gate) == len(mask) else gate
        if gate.shape[1] == 1 or self._every_channel:
            return gate.tolist()
        return {name: reduce(gate, axis=1).tolist() for name, reduce in STATISTICS.items()}


def gate_log_text(lines: Sequence[Line]) -> str:
    """The content of a log."""
    return "".join(json.dumps(line) + "\n" for line in lines)


def read_gate_log(path: str | os.PathLike) -> list[Line]:
    """The lines of a log, ours or the fork's.

    Raises:
      InputError: it cannot be read, a line is no sample, or samples have other layers or gates.
    """
    path = pathlib.Path(path).expanduser()
    try:
        text = read_regular(path).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: unreadable gate log ({error})") from error
    lines: list[Line] = []
    for number, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            lines.append(json.loads(content))
            gates, first = _gate_names(lines[-1]), _gate_names(lines[0])
            if gates != first or not gates:
                raise ValueError(f"gates {gates}, expected {first or 'some'}")
        except (ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
            reason = first_line(error)
            raise InputError(f"{path}, line {number}: not a sample's gates ({reason})") from error
    if not lines:
        raise InputError(f"{path}: no sample is logged")
    return lines


def _gate_names(line: Line) -> list[list[str]]:
    """Names of each layer's gates, whose values are checked."""
    if not isinstance(line, dict):
        raise ValueError("expected a JSON object")
    missing = {"qid", "gating_type", "layer_gates"} - set(line)
    if missing:
        raise ValueError(f"lacks {', '.join(sorted(missing))}")
    layers = line["layer_gates"]
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        raise ValueError("layer_gates: expected a list of JSON objects")
    _check_positions(layers, line.get("energy"))
    return [sorted(layer) for layer in layers]


def _check_positions(layers: Sequence[Mapping[str, Any]], energy: Any) -> None:
    """A gate has as many positions in every layer, and as many as there are energies, or one."""
    counts: dict[str, int] = {}
    for layer in layers:
        for name, values in layer.items():
            count = len(position_means(values))
            if counts.setdefault(name, count) != count:
                raise ValueError(f"{name} has {counts[name]} positions, {count} in another layer")
    if not energy:
        return
    array = np.array(energy, np.float64)
    if array.ndim != 1 or not np.isfinite(array).all():
        raise ValueError("energy: expected a list of finite numbers")
    for name, count in counts.items():
        if count not in (1, len(array)):
            raise ValueError(f"{name} has {count} positions for {len(array)} energies")


def position_means(values: Any) -> np.ndarray:
    """Mean over channels of a logged gate: float64 [positions]."""
    axes = ["positions", "channels"]
    if isinstance(values, Mapping):
        values, axes = values["mean"], axes[:1]
    array = np.array(values, np.float64)
    if array.ndim != len(axes) or not array.size:
        expected = ", ".join(axes)
        raise ValueError(f"values of shape {list(array.shape)}, expected [{expected}]")
    if not np.isfinite(array).all():
        raise ValueError("values are NaN or infinite")
    return array.mean(axis=tuple(range(1, len(axes))))
