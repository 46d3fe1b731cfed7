"""Maps of sound as predictions: scored per condition, compared over seeds, refused where unfit."""

import json
import types

import numpy as np
import pytest

from avs_jax.data.clip import ClipRows
from avs_jax.spec import TRUE_AUDIO, InputError
from configs import align_swin, ms3_vct
from scripts import score_maps
from tests import small

NUM_CLIPS, SIDE = 4, 8


def a_run(tmp_path, seed):
    config = align_swin.get_config("tiny")
    config.seed = seed
    return types.SimpleNamespace(
        config=config,
        directory=tmp_path / f"align-seed{seed}" / "4",
        run_directory=tmp_path / f"align-seed{seed}",
        name="4",
        choose_weights=lambda wanted: ["raw"],
    )


@pytest.fixture
def program(monkeypatch, tmp_path):
    """The program with maps that show the object if its own sound is heard, and else nothing."""
    records = small.records(NUM_CLIPS)
    for record in records:
        record.update(masks=record["masks"] * 5, mask_index=list(range(5)))
    sounds = {r["clip_id"]: r["waveform"][:100].tolist() for r in records}
    rows = ClipRows(ms3_vct.get_config("tiny"))

    class Hearing:
        def __init__(self, task, config, checkpoint, weights, facts):
            self.noise = np.random.default_rng(config.seed)

        def __call__(self, heard, condition, observers):
            for record in heard:
                truth = rows.prepare_labels(record)
                is_own = np.ravel(record["waveform"])[:100].tolist() == sounds[record["clip_id"]]
                pred = truth["labels"] * np.float32(is_own)
                pred[:, : self.noise.integers(9)] = 1
                batch = {k: np.asarray(truth[k])[None] for k in ("valid", "clip_id", "category")}
                for observe in observers:
                    observe({"pred": np.float32(pred)[None]}, batch)

    monkeypatch.setattr(score_maps, "Evaluator", Hearing)
    monkeypatch.setattr(score_maps, "open_records", lambda config, split: records)
    monkeypatch.setattr(score_maps, "use_compilation_cache", lambda: None)
    runs = {f"run{seed}": a_run(tmp_path, seed) for seed in (0, 1, 2)}
    monkeypatch.setattr(score_maps, "Checkpoint", types.SimpleNamespace(find=runs.get))

    def run(*flags):
        config = ["--config=configs/ms3_vct.py:tiny", "--config.evaluate.audio=silence"]
        return score_maps.main(["x", *config, f"--output={tmp_path}/maps", *flags])

    return types.SimpleNamespace(run=run, runs=runs, maps=tmp_path / "maps")


def test_own_sound_is_compared_with_others_over_seeds(program, capsys):
    assert program.run(*[f"--checkpoint={name}" for name in program.runs]) == 0
    report = json.loads((program.maps / "align-seed1" / "report.json").read_text())
    assert report["facts"]["config"] == "align_swin_tiny" and report["facts"]["clips"] == NUM_CLIPS
    scores = {name: found["stream"]["mIoU"] for name, found in report["scores"].items()}
    assert scores[TRUE_AUDIO] > 0.4 > 0.1 > max(scores["swapped_audio"], scores["silence_zeros"])
    for name in ("counts.npz", "counts_swapped_audio.npz", "report.md"):
        assert (program.maps / "align-seed1" / name).is_file()
    table = (program.maps / "table.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in table[1:4]] == [
        ["stream/mIoU", TRUE_AUDIO],
        ["stream/mIoU", "swapped_audio"],
        ["stream/mIoU", "silence_zeros"],
    ]
    assert "(3)" in table[1] and "stream/f_beta" in table[-1]
    assert f"seed 1 {100 * scores[TRUE_AUDIO]:.2f}" in (program.maps / "table.md").read_text()


def test_what_cannot_be_compared_is_refused(program, capsys):
    def refused(message, *flags):
        assert program.run(*flags) == 1
        assert message in capsys.readouterr().err

    refused("align-seed0 also has the name align-seed0", *["--checkpoint=run0"] * 2)
    (program.maps / "align-seed1" / "checkpoints").mkdir(parents=True)
    refused("would be replaced as a whole", "--checkpoint=run1")
    program.runs["run2"].config.seed = 1
    refused("align-seed1 also has config.seed = 1", "--checkpoint=run1", "--checkpoint=run2")
    refused("--checkpoint is missing")
    known = "no such measure; nearest: stream/mIoU"
    refused(known, "--checkpoint=run0", "--measure=stream/IoU")
    program.runs["run0"].config.task = "segment"
    refused("task 'segment', not 'align'", "--checkpoint=run0")
    with pytest.raises(InputError, match="align_swin_tiny is not a recipe of binary segmentation"):
        score_maps.run(types.SimpleNamespace(config=align_swin.get_config("tiny"), values=VALUES))


VALUES = types.SimpleNamespace(output="x", checkpoint=[])
