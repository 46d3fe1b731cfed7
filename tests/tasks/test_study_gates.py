"""The study of the gates: only the direction of the sound tells its halves apart."""

import json

import numpy as np
import pytest

from avs_jax.task import stack_rows
from avs_jax.tasks import make_task
from scripts import study_gates


@pytest.fixture(scope="module")
def records():
    return study_gates.draw_records(400, seed=0)


def split(records, key):
    halves = {study_gates.USEFUL: [], study_gates.NOISE: []}
    for record in records:
        halves[record["domain"]].append(key(record))
    return (np.array(halves[half]) for half in (study_gates.USEFUL, study_gates.NOISE))


def inside(record):
    start, stop = (record["windows"][0] / study_gates.CLIP_SECONDS).astype(int)
    return np.isin(np.arange(study_gates.NUM_CLIPS), np.arange(start, stop))


def test_halves_are_equally_loud_long_and_common(records):
    for key in (
        lambda r: np.linalg.norm(r["audio"], axis=1).mean(),
        lambda r: r["energy"].mean(),
        lambda r: inside(r).sum(),
        lambda r: np.linalg.norm(r["video"][0], axis=1).mean(),
        lambda r: int(r["query"].split()[1]),
    ):
        useful, noise = split(records, key)
        assert len(useful) == len(noise) == 200
        error = np.hypot(useful.std(), noise.std()) / 200**0.5
        assert abs(useful.mean() - noise.mean()) < 3 * error


def test_the_window_is_heard_in_one_half_and_seen_in_the_other(records):
    look, sound, _ = np.random.default_rng(0).standard_normal((3, 12, study_gates.WIDTH))

    def clarity(features, directions, record):
        direction = directions[int(record["query"].split()[1])]
        scores = features @ (direction / np.linalg.norm(direction))
        return scores[inside(record)].mean() - scores[~inside(record)].mean()

    heard, noise = split(records, lambda r: clarity(r["audio"], sound, r))
    hidden, seen = split(records, lambda r: clarity(r["video"][0], look, r))
    assert heard.mean() > 0.9 and seen.mean() > 0.9
    assert abs(noise.mean()) < 0.05 and abs(hidden.mean()) < 0.1


@pytest.mark.parametrize("variant", study_gates.VARIANTS)
def test_every_variant_is_a_task_that_takes_the_records(records, variant):
    task = make_task(study_gates.make_config(variant, seed=0, steps=10))
    batch = stack_rows([task.rows.prepare(record) for record in records[:2]], task.rows.fields)
    assert ("audio" in batch) == (variant != "silent")
    assert batch["target_valid"].tolist() == [[True]] * 2


@pytest.mark.slow
def test_a_run_scores_both_halves_and_their_gates(monkeypatch):
    monkeypatch.setattr(study_gates, "NUM_TEST", 10)
    halves = study_gates.run("clipwise", seed=0, steps=2)
    assert sorted(halves) == ["noise", "useful"]
    assert all(0.0 <= half["R1@0.5"] <= 1.0 for half in halves.values())
    assert all(0.3 < half["gate"] < 0.9 for half in halves.values())


def test_there_is_a_run_at_least(tmp_path, capsys):
    with pytest.raises(SystemExit):
        study_gates.main([f"--output={tmp_path}", "--seeds=0"])
    assert "--seeds=0: expected 1 or more" in capsys.readouterr().err


def test_runs_that_exist_are_not_repeated(tmp_path, monkeypatch, capsys):
    calls = []

    def run(*key):
        calls.append(key)
        return {half: {"R1@0.5": 0.5, "gate": 0.25} for half in ("useful", "noise")}

    monkeypatch.setattr(study_gates, "run", run)
    flags = [f"--output={tmp_path}", "--steps=7", "--variants=global,text"]
    assert study_gates.main([*flags, "--seeds=1"]) == 0
    assert study_gates.main([*flags, "--seeds=2"]) == 0
    assert calls == [("global", 0, 7), ("text", 0, 7), ("global", 1, 7), ("text", 1, 7)]
    assert "mean of 2 seeds, 7 steps" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "gates.json").read_text())) == 4
