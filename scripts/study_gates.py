"""Do the gates of a fusion of sound tell useful sound from noise? A study on generated features.

  python scripts/study_gates.py --output=study [--seeds=3] [--variants=silent,global,clipwise,...]

Every query names one of twelve concepts. In every other video ("useful") the concept sounds in its
window and is never seen. In the remaining ones ("noise") it is seen in its window, and the sound is
bursts of noise, as many, as long and as loud, at unrelated times. Words, frames and loudness do not
tell the halves apart; only the direction of the sound's features does.

  silent         no sound, the baseline
  global, clipwise, elementwise    fusion "custom", of a QD-DETR fork (commit dd81d7c)
  avigate        AVIGATE's
  b0             the fork's older gates (tanh, per clip; commit 73b09d9)
  energy, text   clipwise, with the sound's log-RMS, with the words as a gate input
  both           clipwise, with both

Printed per variant and seed: R1@0.5 of each half, and the mean gate of the sound (gate_mha, over
layers, clips and channels) in each. OUTPUT/gates.json has the numbers; runs in it are not repeated,
so the same command resumes, and other variants or seeds are added.
"""

import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from avs_jax.data.pipeline import EvalBatches, TrainBatches  # noqa: E402
from avs_jax.files import write_atomically  # noqa: E402
from avs_jax.flag_style import FlagParser  # noqa: E402
from avs_jax.results import gate_log, moments  # noqa: E402
from avs_jax.runtime import sharding  # noqa: E402
from avs_jax.runtime.compilation_cache import use_compilation_cache  # noqa: E402
from avs_jax.runtime.evaluation import eval_batch_size, evaluate, make_eval_step  # noqa: E402
from avs_jax.runtime.optim import make_optimizer  # noqa: E402
from avs_jax.runtime.setup import make_train_setup  # noqa: E402
from avs_jax.task import select  # noqa: E402
from avs_jax.tasks import make_task  # noqa: E402
from configs import ground_generated  # noqa: E402

USEFUL, NOISE = "useful", "noise"
NUM_CONCEPTS, NUM_CLIPS, CLIP_SECONDS = 12, 20, 2.0
WIDTH = 24  # of all features
NOISE_LEVEL = 0.3  # of the features, whose concepts have unit length
NUM_TRAIN, NUM_TEST = 640, 200
VARIANTS = {
    "silent": {"name": "concat"},
    "global": {"name": "custom", "gate": {"granularity": "global"}},
    "clipwise": {"name": "custom", "gate": {"granularity": "clipwise"}},
    "elementwise": {"name": "custom", "gate": {"granularity": "elementwise"}},
    "avigate": {"name": "avigate", "share": 0.5, "num_resampler_layers": 1},
    "b0": {"name": "b0", "gate": {"granularity": "clipwise"}},
    "energy": {"name": "custom", "gate": {"granularity": "clipwise", "energy": True}},
    "text": {"name": "custom", "gate": {"granularity": "clipwise", "text": True}},
    "both": {"name": "custom", "gate": {"granularity": "clipwise", "energy": True, "text": True}},
}


def main(argv: list[str] | None = None) -> int:
    """Parses the flags, runs what is missing and prints the table; returns the exit status."""
    parser = FlagParser(description=__doc__)
    parser.add_argument("--output", required=True, help="folder of gates.json")
    parser.add_argument("--seeds", type=int, default=3, help="runs per variant (%(default)s)")
    parser.add_argument("--steps", type=int, default=8000, help="of a run (%(default)s)")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="(%(default)s)")
    args = parser.parse_args(argv)
    for name in ("seeds", "steps"):
        if getattr(args, name) < 1:
            parser.error(f"--{name}={getattr(args, name)}: expected 1 or more")
    names = args.variants.split(",")
    unknown = sorted(set(names) - set(VARIANTS))
    if unknown:
        parser.error(f"--variants: {unknown[0]!r} is none of {', '.join(VARIANTS)}")
    use_compilation_cache()  # the programs of a variant are those of its other seeds
    path = pathlib.Path(args.output).expanduser() / "gates.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    for name in names:
        for seed in range(args.seeds):
            key = f"{name}/{args.steps}/{seed}"
            if key not in results:
                results[key] = run(name, seed, args.steps)
                write_atomically(path, json.dumps(results, indent=2) + "\n")
            print(format_row(name, str(seed), results[key]), flush=True)
    print(summary(results, names, args.steps, args.seeds))
    return 0


# ---- data ----


def draw_records(count: int, seed: int) -> list[dict[str, Any]]:
    """Queries on videos, useful and noise by turns.

    The concepts' features are the same for every seed.
    """
    concepts = np.random.default_rng(0).standard_normal((3, NUM_CONCEPTS, WIDTH))
    concepts /= np.linalg.norm(concepts, axis=-1, keepdims=True)
    rng = np.random.default_rng((1, seed))
    return [draw_record(i, concepts, rng) for i in range(count)]


def draw_record(index: int, concepts: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    """One query; see the text of this file."""
    look, sound, word = concepts
    is_useful = index % 2 == 0
    asked, *others = rng.permutation(NUM_CONCEPTS)
    video, audio = (rng.normal(0, NOISE_LEVEL / WIDTH**0.5, (NUM_CLIPS, WIDTH)) for _ in range(2))
    energy = np.full(NUM_CLIPS, -6.0)
    seen, heard = (draw_windows(rng) for _ in range(2))
    for i, (start, stop) in enumerate(seen):
        video[start:stop] += look[asked if i == 0 and not is_useful else others[i]]
    for i, (start, stop) in enumerate(heard):
        direction = sound[asked if i == 0 and is_useful else others[3 + i]]
        if not is_useful:
            direction = rng.standard_normal((stop - start, WIDTH))
            direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
        audio[start:stop] += direction
        energy[start:stop] = rng.normal(-2, 0.2)
    start, stop = (heard if is_useful else seen)[0]
    return {
        "qid": str(index),
        "vid": str(index),
        "query": f"concept {asked}",
        "domain": USEFUL if is_useful else NOISE,
        "duration": NUM_CLIPS * CLIP_SECONDS,
        "clip_seconds": CLIP_SECONDS,
        "video": [video.astype(np.float32)],
        "audio": audio.astype(np.float32),
        "text": word[asked][None].astype(np.float32),
        "energy": energy.astype(np.float32),
        "windows": np.array([[start, stop]], np.float32) * CLIP_SECONDS,
        "saliency_clips": (),
        "saliency": np.zeros((0, 0)),
        "ratings": np.zeros((0, 0)),
    }


def draw_windows(rng: np.random.Generator) -> list[tuple[int, int]]:
    """Three windows of 2 to 4 clips that do not touch, in random order."""
    lengths = rng.integers(2, 5, 3)
    spare = NUM_CLIPS - lengths.sum() - 2
    starts = np.sort(rng.integers(0, spare + 1, 3)) + np.cumsum([0, *(lengths[:-1] + 1)])
    windows = [(int(s), int(s + n)) for s, n in zip(starts, lengths, strict=True)]
    return [windows[i] for i in rng.permutation(3)]


# ---- a run ----


def make_config(variant: str, seed: int, steps: int) -> ConfigDict:
    """A small recipe with the fusion of the variant."""
    config = ground_generated.get_config("tiny")
    config.name, config.seed = f"study_{variant}", seed
    config.data.update(max_clips=NUM_CLIPS, max_words=1, max_windows=1, saliency="windows")
    config.data.update(video_dims=(WIDTH,), text_dim=WIDTH, clip_seconds=CLIP_SECONDS)
    config.data.audio_dim = 0 if variant == "silent" else WIDTH
    config.model.update(hidden_dim=64, num_heads=4, ffn_dim=128, num_queries=4)
    config.model.update(num_decoder_layers=1, num_text_layers=1, num_encoder_layers=1)
    fusion = dict(VARIANTS[variant])
    if fusion["name"] != "concat":
        fusion |= {"num_layers": 1, "num_heads": 4}
    config.model.fusion = ConfigDict(fusion)
    config.optim.update(learning_rate=1e-3, warmup_steps=100)
    config.train.update(steps=steps, batch_size=32)
    config.evaluate.batch_size = 1
    return config


def run(variant: str, seed: int, steps: int) -> dict[str, dict[str, float]]:
    """Trains and scores one model.

    Returns:
      half -> {"R1@0.5", and "gate" where there are gates}.
    """
    config = make_config(variant, seed, steps)
    task, mesh = make_task(config), sharding.make_mesh(config)
    setup = make_train_setup(task.model, task.loss, make_optimizer, task, config, mesh)
    state, step = setup.init_state(*setup.init_variables()), setup.make_train_step()
    batches = TrainBatches(draw_records(NUM_TRAIN, seed), task.rows, 32, seed)
    for i in range(steps):
        batch = select(batches[i], task.rows.fields, "input", "target")
        state, _ = step(state, sharding.put_batch(batch, mesh), setup.seed())
    records = draw_records(NUM_TEST, 1000 + seed)
    log = gate_log.GateLog(variant)
    observers = [] if variant == "silent" else [log.add]
    tests = EvalBatches(records, task.rows, eval_batch_size(config, mesh))
    batches = [tests[i] for i in range(len(tests))]
    variables = (state.params, state.batch_stats)
    scored = evaluate(
        task, make_eval_step(task, mesh), variables, batches, mesh, observers=observers
    )
    found = {}
    for half in (USEFUL, NOISE):
        table = scored.table.take(scored.table["domain"] == half)
        found[half] = {"R1@0.5": moments.moments(table)["R1@0.5"]}
        lines = [line for line in log.lines if records[int(line["qid"])]["domain"] == half]
        if lines:
            found[half]["gate"] = mean_gate(lines)
    return found


def mean_gate(lines: Sequence[gate_log.Line]) -> float:
    """Mean of gate_mha over samples, layers, clips and channels."""
    layers = [layer["gate_mha"] for line in lines for layer in line["layer_gates"]]
    return float(np.mean([gate_log.position_means(values).mean() for values in layers]))


# ---- the table ----


def format_row(name: str, seed: str, found: dict[str, dict[str, float]]) -> str:
    """One line of the table."""
    cells = [f"{name:<12} {seed:<5}"]
    cells += [f"R1@0.5 {half} {100 * found[half]['R1@0.5']:5.1f}" for half in (USEFUL, NOISE)]
    if "gate" in found[USEFUL]:
        gates = [found[half]["gate"] for half in (USEFUL, NOISE)]
        cells += [f"gate useful {gates[0]:+.3f}", f"noise {gates[1]:+.3f}"]
        cells.append(f"difference {gates[0] - gates[1]:+.3f}")
    return "  ".join(cells)


def summary(results: dict[str, Any], names: Sequence[str], steps: int, seeds: int) -> str:
    """A line per variant: means over seeds."""
    lines = [f"mean of {seeds} seeds, {steps} steps:"]
    for name in names:
        runs = [results[f"{name}/{steps}/{seed}"] for seed in range(seeds)]
        mean = {
            half: {key: float(np.mean([r[half][key] for r in runs])) for key in runs[0][half]}
            for half in (USEFUL, NOISE)
        }
        lines.append(format_row(name, "mean", mean))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
