"""The losses of synchrony against loops over frames and cells."""

import jax
import numpy as np
import pytest

from avs_jax.losses.synchrony import synchrony_losses
from configs.segment import segment_config

G, L = 4, 5


@pytest.fixture(scope="module")
def case():
    """Four frames: usual, still, without truth, and one in which nothing moves outside."""
    rng = np.random.default_rng(0)
    outputs = {
        "sync_lags": rng.normal(size=(2, 2, G, G, L)),
        "sync_near": rng.uniform(0.1, 1, (2, 2, L)),
        "sync_far": rng.uniform(0.1, 1, (2, 2, L)) * (rng.uniform(size=(2, 2, L)) > 0.3),
        "sync_score": rng.uniform(-1, 1, (2, 2, G, G)),
        "sync_activity": rng.uniform(0.2, 1, (2, 2, G, G)),
    }
    masks = np.zeros((2, 2, 3, 8, 8), bool)
    masks[:, :, 0, 1:5, :4] = True  # half and whole cells
    masks[:, :, 1] = ~masks[:, :, 0]
    masks[1, 0, 0] = False
    outputs["sync_activity"][0, 1] *= 0.05
    outputs["sync_activity"][1, 1, :, 2:] = 0
    outputs["sync_activity"][1, 1, 3] = 0
    targets = {
        "supervised": np.ones((2, 2), bool),
        "target_masks": masks,
        "target_labels": np.tile(np.array([1, 0, 0], np.int32), (2, 2, 1)),
        "target_valid": np.tile(np.array([True, True, False]), (2, 2, 1)),
    }
    outputs = {name: value.astype(np.float32) for name, value in outputs.items()}
    return outputs, targets, segment_config().loss


def by_hand(outputs, targets, loss_config):
    lag = rank = 0.0
    for b, t in np.ndindex(2, 2):
        truth = targets["target_masks"][b, t, 0].reshape(G, 2, G, 2).mean((1, 3))
        active = outputs["sync_activity"][b, t].astype(np.float64)
        score = outputs["sync_score"][b, t].astype(np.float64)
        inside = truth * active
        if not targets["supervised"][b, t] or not truth.any():
            continue
        mean = inside.sum() / truth.sum()
        if mean <= 0.1:
            continue
        p = (inside[..., None] * outputs["sync_lags"][b, t]).sum((0, 1)) / inside.sum()
        near, far = outputs["sync_near"][b, t], outputs["sync_far"][b, t]
        lag -= np.log((near * np.exp(p)).sum() / ((near + far) * np.exp(p)).sum())
        outside = np.where((truth < 0.5) & (active >= mean / 2), active, 0)
        if outside.any():
            means = [(w * score).sum() / w.sum() for w in (inside, outside)]
            rank += max(0, loss_config.synchrony.margin - means[0] + means[1])
    count = targets["supervised"].sum()
    weights = loss_config.synchrony.weight, loss_config.synchrony.rank_weight
    return weights[0] * lag / count, weights[1] * rank / count


def test_against_loops(case):
    outputs, targets, config = case
    found = synchrony_losses(outputs, targets, config, {})
    want = by_hand(outputs, targets, config)
    assert want[0] > 0 and want[1] > 0
    np.testing.assert_allclose(found["loss_sync_lag"], want[0], rtol=1e-4)
    np.testing.assert_allclose(found["loss_sync_rank"], want[1], rtol=1e-4)
    targets = targets | {"supervised": np.array([[True, False], [False, False]])}
    found = synchrony_losses(outputs, targets, config, {})
    np.testing.assert_allclose(list(found.values()), by_hand(outputs, targets, config), rtol=1e-4)


def test_micro_batches_add_up(case):
    outputs, targets, config = case
    whole = synchrony_losses(outputs, targets, config, {})
    halves = [
        synchrony_losses(
            *({k: v[b : b + 1] for k, v in part.items()} for part in (outputs, targets)),
            config, {"frames": np.float32(4)},
        )
        for b in range(2)
    ]  # fmt: skip
    for name, value in whole.items():
        np.testing.assert_allclose(halves[0][name] + halves[1][name], value, rtol=1e-5)


def test_gradients_are_finite_and_reach_the_frames_that_take_part_alone(case):
    outputs, targets, config = case

    def total(outputs):
        return sum(synchrony_losses(outputs, targets, config, {}).values())

    grads = jax.grad(total)(outputs)
    for name in ("sync_lags", "sync_score"):
        assert np.isfinite(grads[name]).all()
        assert not np.any(grads[name][0, 1]) and not np.any(grads[name][1, 0])
        assert np.any(grads[name][0, 0])
    assert not np.any(grads["sync_activity"])
