"""Matching against SciPy; costs and assignments against the stored runs are in test_criterion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from avs_jax.losses.matcher import match, matching_cost
from configs.segment import segment_config


@pytest.mark.parametrize(("num_queries", "num_targets"), [(100, 2), (100, 24), (7, 7), (3, 1)])
def test_total_cost_is_minimal_for_any_padding(num_queries, num_targets):
    rng = np.random.default_rng(num_targets)
    cost = rng.normal(size=(6, num_queries, num_targets)).astype(np.float32) * 10
    valid = rng.uniform(size=(6, num_targets)) < 0.6
    valid[0], valid[1] = True, False
    # Costs of padding must not matter, be they ever so tempting.
    padded = np.where(valid[:, None, :], cost, rng.choice([-1e4, np.nan, np.inf]))
    query = np.asarray(jax.jit(match)(padded, valid))
    for n in range(6):
        targets = np.flatnonzero(valid[n])
        expected = cost[n][:, targets][linear_sum_assignment(cost[n][:, targets])].sum()
        np.testing.assert_allclose(cost[n, query[n, targets], targets].sum(), expected, 1e-5)
        assert len(set(query[n])) == num_targets and query.min() >= 0


def test_non_finite_costs_do_not_hang():
    cost = np.full((1, 20, 3), np.nan, np.float32)
    assert match(jnp.asarray(cost), jnp.ones((1, 3), bool)).shape == (1, 3)


def test_more_targets_than_queries_is_an_error():
    with pytest.raises(ValueError, match="3 targets per frame cannot each have one of 2 queries"):
        match(jnp.zeros((1, 2, 3)), jnp.ones((1, 3), bool))


def test_a_perfect_query_is_found():
    """Query 5 predicts target 0, query 2 target 1, in mask and class; the others neither."""
    masks = np.zeros((1, 2, 16, 16), bool)
    masks[0, 0, :8], masks[0, 1, 8:] = True, True
    pred_masks = np.full((1, 16, 16, 9), -10, np.float32)
    pred_masks[0, ..., 5] = np.where(masks[0, 0], 10, -10)
    pred_masks[0, ..., 2] = np.where(masks[0, 1], 10, -10)
    logits = np.zeros((1, 9, 3), np.float32)
    logits[0, 5, 1] = logits[0, 2, 0] = 8
    points = np.random.default_rng(0).uniform(size=(1, 48, 2)).astype(np.float32)
    cost = matching_cost(
        logits, pred_masks, masks, np.array([[1, 0]]), points, segment_config().loss
    )
    assert match(cost, jnp.ones((1, 2), bool)).tolist() == [[5, 2]]
