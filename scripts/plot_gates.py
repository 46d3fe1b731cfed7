"""Draws what a gate log holds (avs_jax/results/gate_log.py).

  python scripts/plot_gates.py --log=gate_logs_val_Nall.jsonl --output=figures [--top=5]

heatmap.png   mean gate of each layer and sample; symmetric colors where a gate's signs differ
layers.png    mean and standard deviation over samples of each layer
samples.png   the samples with the highest and the lowest mean gate
energy.png    gate against the energy of the sound, with Spearman's rho
gates.json    the numbers in these figures
"""

import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
matplotlib.rcParams["text.parse_math"] = False  # names in a log may hold dollar signs

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from scipy import stats  # noqa: E402

from avs_jax.files import atomic_path, write_atomically  # noqa: E402
from avs_jax.flag_style import FlagParser  # noqa: E402
from avs_jax.results import gate_log  # noqa: E402
from avs_jax.spec import InputError  # noqa: E402

MIN_PAIRS = 3  # of gate and energy, below which there is no rank correlation
MAX_TICKS = 40  # samples whose names fit under a heat map


def main(argv: list[str] | None = None) -> int:
    """Parses the flags and draws; returns the exit status."""
    parser = FlagParser(description=__doc__)
    parser.add_argument("--log", required=True, help="gate_logs_*.jsonl")
    parser.add_argument("--output", required=True, help="folder of the figures")
    parser.add_argument("--top", type=int, default=5, help="samples at either end (%(default)s)")
    args = parser.parse_args(argv)
    if args.top < 1:
        parser.error(f"--top={args.top}: expected 1 or more")
    output = pathlib.Path(args.output).expanduser()
    try:
        lines = gate_log.read_gate_log(args.log)
        numbers = draw_figures(lines, output, args.top)
        write_atomically(output / "gates.json", json.dumps(numbers, indent=2) + "\n")
    except (InputError, OSError) as error:
        print(f"plot_gates: {error}", file=sys.stderr)
        return 1
    print(f"{output}: figures of {len(lines)} samples; {_summary(numbers)}")
    return 0


def draw_figures(lines: Sequence[gate_log.Line], folder: pathlib.Path, top: int) -> dict[str, Any]:
    """Draws every figure of a log into a folder.

    Returns:
      {gate: {"layer_mean": [layers], "layer_std": [layers], "spearman_rho", "num_pairs"}}; rho is
      None where too little energy is known or a side is constant.
    """
    means = layer_means(lines)
    qids = [str(line["qid"]) for line in lines]
    kind = lines[0]["gating_type"]
    _save(draw_heatmaps(means, qids, kind), folder / "heatmap.png")
    _save(draw_layers(means, kind), folder / "layers.png")
    _save(draw_samples(means, qids, kind, top), folder / "samples.png")
    pairs = {name: energy_pairs(lines, name) for name in means}
    rho = {name: rank_correlation(*pair) for name, pair in pairs.items()}
    _save(draw_energy(pairs, rho, kind), folder / "energy.png")
    return {
        name: {
            "layer_mean": mean.mean(axis=1).tolist(),
            "layer_std": mean.std(axis=1).tolist(),
            "spearman_rho": rho[name],
            "num_pairs": len(pairs[name][0]),
        }
        for name, mean in means.items()
    }


def layer_means(lines: Sequence[gate_log.Line]) -> dict[str, np.ndarray]:
    """Mean gate by name, float64 [layers, samples]: over positions of a sample, over channels."""
    names = lines[0]["layer_gates"][0]
    return {
        name: np.array(
            [
                [gate_log.position_means(layer[name]).mean() for layer in line["layer_gates"]]
                for line in lines
            ]
        ).T
        for name in names
    }


def energy_pairs(lines: Sequence[gate_log.Line], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Energy and gate (mean over layers and channels) of every position whose energy is known.

    One gate per sample is paired with the mean energy of its clips.
    """
    energies, gates = [np.zeros(0)], [np.zeros(0)]
    for line in lines:
        if not line.get("energy"):
            continue
        energy = np.array(line["energy"], np.float64)
        gate = np.mean(
            [gate_log.position_means(layer[name]) for layer in line["layer_gates"]], axis=0
        )
        energies.append(energy if len(gate) > 1 else energy.mean(keepdims=True))
        gates.append(gate)
    return np.concatenate(energies), np.concatenate(gates)


def draw_heatmaps(means: Mapping[str, np.ndarray], qids: Sequence[str], kind: str):
    """One map [layers, samples] per gate; 0 is white where a gate has both signs."""
    width = float(np.clip(2 + 0.25 * len(qids), 6, 16))
    figure, axes = plt.subplots(
        len(means), squeeze=False, figsize=(width, 2.4 * len(means)), layout="constrained"
    )
    for axis, (name, mean) in zip(axes[:, 0], means.items(), strict=True):
        colors: dict[str, Any] = {"cmap": "viridis"}
        if mean.min() < 0 < mean.max():
            limit = float(np.abs(mean).max())
            colors = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
        image = axis.imshow(mean, aspect="auto", interpolation="nearest", **colors)
        figure.colorbar(image, ax=axis, label=f"mean {name}")
        axis.set(title=f"{name} ({kind})", ylabel="layer", yticks=range(len(mean)))
        axis.set_xlabel("sample (qid)")
        if len(qids) <= MAX_TICKS:
            axis.set_xticks(range(len(qids)), qids, rotation=90, fontsize=7)
    return figure


def draw_layers(means: Mapping[str, np.ndarray], kind: str):
    """A bar per layer and gate, with the standard deviation over samples."""
    figure, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
    width = 0.8 / len(means)
    for i, (name, mean) in enumerate(means.items()):
        place = np.arange(len(mean)) + (i - (len(means) - 1) / 2) * width
        axis.bar(place, mean.mean(axis=1), width, yerr=mean.std(axis=1), capsize=3, label=name)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set(title=f"Mean gate by layer ({kind})", xlabel="layer", ylabel="mean gate")
    axis.set_xticks(range(len(mean)))
    axis.legend()
    return figure


def draw_samples(means: Mapping[str, np.ndarray], qids: Sequence[str], kind: str, top: int):
    """The samples with the highest and lowest mean over layers, a panel per gate."""
    shown = min(2 * top, len(qids))
    figure, axes = plt.subplots(
        ncols=len(means),
        squeeze=False,
        figsize=(4.5 * len(means), 1.2 + 0.3 * shown),
        layout="constrained",
    )
    for axis, (name, mean) in zip(axes[0], means.items(), strict=True):
        value = mean.mean(axis=0)
        order = np.argsort(value, kind="stable")
        low, high = order[: shown // 2], order[len(order) - (shown - shown // 2) :]
        chosen = np.concatenate([low, high])
        colors = ["tab:blue"] * len(low) + ["tab:red"] * len(high)
        axis.barh(range(shown), value[chosen], color=colors)
        axis.set_yticks(range(shown), [qids[i] for i in chosen], fontsize=8)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.axvline(value.mean(), color="gray", linestyle="--", linewidth=0.8)
        axis.set(title=f"{name} ({kind})", xlabel="mean over layers", ylabel="qid")
    return figure


def draw_energy(
    pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], rho: Mapping[str, float | None], kind: str
):
    """Gate against energy, a panel per gate."""
    figure, axes = plt.subplots(
        ncols=len(pairs), squeeze=False, figsize=(4.5 * len(pairs), 3.8), layout="constrained"
    )
    for axis, (name, (energy, gate)) in zip(axes[0], pairs.items(), strict=True):
        axis.scatter(energy, gate, s=8, alpha=0.4, linewidths=0)
        value = "unknown" if rho[name] is None else f"{rho[name]:+.3f}"
        axis.set(
            title=f"{name} ({kind}): Spearman's rho {value}, n = {len(energy)}",
            xlabel="log-RMS of the sound",
            ylabel="gate, mean over layers",
        )
        axis.title.set_fontsize(9)
    return figure


def rank_correlation(energy: np.ndarray, gate: np.ndarray) -> float | None:
    """Spearman's rho; None where there are too few pairs or a side is constant."""
    if len(energy) < MIN_PAIRS or np.ptp(energy) == 0 or np.ptp(gate) == 0:
        return None
    return float(stats.spearmanr(energy, gate).statistic)


def _save(figure, path: pathlib.Path) -> None:
    with atomic_path(path) as unfinished:
        figure.savefig(unfinished, dpi=130)
    plt.close(figure)


def _summary(numbers: Mapping[str, Any]) -> str:
    return "; ".join(
        f"{name} {np.mean(values['layer_mean']):.3f}"
        + ("" if values["spearman_rho"] is None else f", rho {values['spearman_rho']:+.3f}")
        for name, values in numbers.items()
    )


if __name__ == "__main__":
    sys.exit(main())
