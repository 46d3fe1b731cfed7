"""The whole job with false sounds, for a model that hears nothing but how loud a sound is.

Silence silences it. Noise, off-screen sound and another second have the clip's own level, so it
takes them for the clip's own: every number follows.
"""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax import evaluate as evaluation
from avs_jax.controls import false_sounds
from avs_jax.data.clip import ClipRows
from avs_jax.data.pipeline import EvalBatches
from avs_jax.results.counts import FrameCounts
from avs_jax.runtime.checkpoint import save_variables
from avs_jax.spec import NEGATIVE_AUDIO, InputError
from tests.programs.test_evaluate import (
    NUM_CLIPS,
    SCORE,
    Listener,
    Source,
    a_config,
    a_task,
    evaluate_test_split,
    records,
)

CONDITIONS = [name for names in NEGATIVE_AUDIO.values() for name in names]


class Loudness(Listener):
    """Marks nothing where it is quieter than any category."""

    def apply(self, variables, inputs, train):
        outputs = super().apply(variables, inputs, train)
        heard = inputs["log_mel"].mean(axis=(2, 3))
        params = variables["params"]
        quiet = (heard < params["low"] - params["step"] / 2)[:, :, None, None]
        masks = jnp.where(quiet, -20.0, outputs["pred_masks"][..., 1])
        return outputs | {"pred_masks": jnp.stack([-masks, masks], axis=-1)}


@pytest.fixture
def job(monkeypatch, tmp_path):
    """(config, directory of a checkpoint, records that evaluate_config will read)."""
    config, clips = a_config(), Source(records())
    for i, clip in enumerate(clips):  # -40, -30 and -20 dBFS
        noise = np.random.default_rng(i).normal(size=len(clip["waveform"]))
        clip["waveform"] = (300 * 10 ** (i % 3 / 2) * noise).astype(np.int16)
    config.evaluate.update(audio="silence,noise,offscreen,shift,late", swapped_audio=False)
    config.evaluate.num_pictures = 0
    heard = [EvalBatches(clips, ClipRows(config), NUM_CLIPS)[0]["log_mel"][i][:2] for i in (0, 2)]
    low, high = (float(x.mean()) for x in heard)
    params = {"low": np.float32(low), "step": np.float32((high - low) / 2)}
    monkeypatch.setattr(evaluation, "make_task", lambda config: a_task(config, Loudness()))
    monkeypatch.setattr(evaluation, "open_records", lambda config, split: clips)
    save_variables(tmp_path / "weights", {"params": params}, config)
    return config, tmp_path / "weights", clips


def test_every_condition_is_scored_and_written(job, tmp_path, capsys):
    config, weights, _ = job
    report = evaluate_test_split(config, weights, tmp_path / "out")
    numbers = report.summary.numbers
    found = numbers["conditions"]
    assert list(found) == ["true_audio", *CONDITIONS]
    for condition in CONDITIONS:
        deaf = not condition.startswith("silence")
        assert found[condition]["clips"] == NUM_CLIPS
        assert found[condition]["mIoU"]["value"] == pytest.approx(float(deaf), abs=1e-6)
        # It marks a square of half the side, or nothing.
        assert found[condition]["FPR"]["value"] == pytest.approx(deaf * 64 / SCORE**2)
        assert found[condition]["frac_near_empty"]["value"] == pytest.approx(1 - deaf)
    # N is the mean over types, two of the three published ones at 1.
    published = numbers["summary"]["published"]
    assert published["G-mIoU"]["value"] == pytest.approx(2 * (1 / 3) / (1 + 1 / 3), abs=1e-6)
    assert any("the model reads no motion" in note for note in report.notes)
    assert "late" in numbers["summary"]["all"]["types"]

    (folder,) = (tmp_path / "out" / "evaluation").iterdir()
    written = json.loads((folder / "report.json").read_text())
    assert written["negatives"] == json.loads(json.dumps(numbers))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert written["facts"]["manifest_sha256"] == manifest["sha256"]
    assert manifest["sha256"] == false_sounds.manifest_digest(manifest)
    for text in (capsys.readouterr().out, (folder / "report.md").read_text()):
        assert "False sounds" in text and manifest["sha256"] in text
        assert "noise pink" in text and "silence, noise, offscreen" in text

    tables = {name: FrameCounts.load(folder / f"counts_{name}.npz") for name in CONDITIONS}
    tables = {"true_audio": FrameCounts.load(folder / "counts.npz")} | tables
    facts = tables["true_audio"].facts
    again = evaluation.make_report(evaluation.make_task(config), facts, tables, NUM_CLIPS)
    assert again.summary.numbers["conditions"] == numbers["conditions"]
    assert again.summary.numbers["summary"] == numbers["summary"]


def test_numbers_do_not_depend_on_the_batch_size(job, tmp_path):
    config, weights, _ = job
    config.evaluate.audio = "noise"
    want = evaluate_test_split(config, weights, tmp_path / "a")
    config.evaluate.batch_size = 10
    report = evaluate_test_split(config, weights, tmp_path / "b")
    assert report.summary.numbers == want.summary.numbers and report.scores == want.scores


def test_motion_controls_run_where_the_model_reads_motion(job, tmp_path):
    config, weights, clips = job
    config.evaluate.audio = "silence"
    config.evaluate.motion = "zero,shuffled,scrambled"
    config.data.motion.source = "auto"
    for clip in clips:
        shifted = [np.roll(frame, 3 * t, axis=1) for t, frame in enumerate(clip["frames"])]
        clip["frames"], clip["masks"] = shifted, clip["masks"][:1]
        clip["mask_index"] = np.array([0])
    report = evaluate_test_split(config, weights, tmp_path / "out")
    found = report.summary.numbers["conditions"]
    assert list(found) == ["true_audio", "silence_zeros", "silence_dither", "zero_flow",
                           "shuffled_flow"]  # fmt: skip
    for control in ("zero_flow", "shuffled_flow"):
        assert found[control]["gap_mIoU"]["value"] == 0
    assert "scrambled_track left out: the model reads no motion track" in report.notes
    # What moves is the edges of the squares, in every condition alike.
    assert 0 < report.summary.numbers["moving_share"] < 0.5
    config.evaluate.motion = ""
    report = evaluate_test_split(config, weights, tmp_path / "out")
    assert "zero_flow" not in report.summary.numbers["conditions"]


def test_what_cannot_be_made_is_said(job, tmp_path):
    config, weights, clips = job
    config.evaluate.audio = "offscreen"
    for clip in clips:
        clip["category"] = ""
    report = evaluate_test_split(config, weights, tmp_path / "out")
    assert list(report.summary.numbers["conditions"]) == ["true_audio"]
    (note,) = (n for n in report.notes if n.startswith("offscreen"))
    assert "0 of 10 clips" in note and "do not say what sounds" in note


def test_a_manifest_is_used_again_or_refused(job, tmp_path, capsys):
    config, weights, clips = job
    config.evaluate.audio = "shift"
    text = evaluation.make_task(config).controls(clips, "test").files["manifest.json"]
    manifest = json.loads(text)
    config.evaluate.manifest = str(tmp_path / "manifest.json")
    (tmp_path / "manifest.json").write_text(text)
    report = evaluate_test_split(config, weights, tmp_path / "out")
    assert report.facts["manifest_sha256"] == manifest["sha256"]
    clips.pop()
    with pytest.raises(InputError, match="1 are not in it .'clip09'"):
        evaluate_test_split(config, weights, tmp_path / "out")
    config.evaluate.audio = ""
    with pytest.raises(InputError, match="names nothing to use it for"):
        evaluate_test_split(config, weights, tmp_path / "out")


def test_flags_reach_the_configuration(job, tmp_path, capsys):
    _, weights, _ = job
    arguments = ["evaluate", "--config=configs/s4_vct.py", f"--checkpoint={weights}"]
    arguments += ["--config.data.image_size=32", "--config.data.num_frames=3"]
    arguments += [f"--config.evaluate.score_size={SCORE}", "--config.data.pre_masks=False"]
    arguments += [f"--output={tmp_path}/out", "--config.evaluate.swapped_audio=False"]
    arguments += ["--config.evaluate.num_pictures=0"]
    assert evaluation.main([*arguments, "--audio=shift"]) == 0
    (manifest,) = (tmp_path / "out" / "evaluation").glob("*/manifest.json")
    assert evaluation.main([*arguments, "--audio=shift", f"--manifest={manifest}"]) == 0
    changed = manifest.read_text().replace('"noise_seed": 1', '"noise_seed": 2')
    (tmp_path / "changed.json").write_text(changed)
    assert evaluation.main([*arguments, "--audio=shift", f"--manifest={tmp_path}/changed.json"])
    assert "sha256 of its contents" in capsys.readouterr().err
    assert evaluation.main([*arguments, "--audio=hum"]) == 1
    assert "'hum'" in capsys.readouterr().err
