"""The losses of expressions: InfoNCE's values, its positives and negatives, presence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from avs_jax.losses.localization import localization_loss
from avs_jax.losses.referral import compute_losses, info_nce, mean_under
from avs_jax.ops.unit_length import normalize

SIMILARITY = np.array(
    [[0.9, 0.8, 0.1, 0], [0.7, 0.6, 0.65, 0.1], [0.2, 0.3, 0.5, 0.5], [0.1, 0.95, 0.2, 0.4]],
    np.float32,
)


@pytest.mark.parametrize(
    "tau, rows, columns", [(1, 1.266820, 1.256266), (0.07, 2.694215, 2.268799)]
)
def test_one_positive_each(tau, rows, columns):
    ids, has = np.arange(4), np.ones(4, bool)
    loss, counts = info_nce(SIMILARITY / np.float32(tau), ids, has)
    np.testing.assert_allclose(loss, (rows + columns) / 2, atol=2e-6)
    assert counts["align_anchors"] == 4 and counts["align_positives"] == 1
    loss, _ = info_nce(np.zeros((4, 4), np.float32), ids, has)
    np.testing.assert_allclose(loss, 1.386294, atol=1e-6)


def brute_force(similarity, ids, has):
    """By the definition, row by row, in float64."""
    losses = {0: [], 1: []}
    for direction, s in enumerate((similarity.astype(np.float64), similarity.T.astype(np.float64))):
        for i in np.flatnonzero(has):
            others = np.arange(len(ids)) if direction == 0 else np.flatnonzero(has)
            total = np.log(np.exp(s[i, others]).sum())
            positives = [j for j in np.flatnonzero(has) if ids[j] == ids[i]]
            losses[direction].append(-np.mean([s[i, j] - total for j in positives]))
    return (np.mean(losses[0]) + np.mean(losses[1])) / 2


def test_positives_and_null_rows_by_brute_force():
    rng = np.random.default_rng(0)
    similarity = rng.standard_normal((6, 6)).astype(np.float32)
    ids, has = np.array([5, 7, 5, -1, 7, 9]), np.array([1, 1, 1, 0, 1, 1], bool)
    loss, counts = info_nce(similarity, ids, has)
    np.testing.assert_allclose(loss, brute_force(similarity, ids, has), rtol=1e-6)
    assert counts["align_positives"] == pytest.approx((2 + 2 + 2 + 2 + 1) / 5)
    # A null row's text counts as a negative, its object does not exist.
    louder = similarity.copy()
    louder[:3, 3] += 3
    assert info_nce(louder, ids, has)[0] > loss
    louder = similarity.copy()
    louder[3] += 3
    np.testing.assert_allclose(info_nce(louder, ids, has)[0], loss, rtol=1e-6)
    assert info_nce(similarity, ids, np.zeros(6, bool))[0] == 0


def test_mean_under_masks():
    rng = np.random.default_rng(1)
    features = rng.standard_normal((2, 3, 4, 4, 5)).astype(np.float32)
    masks = np.zeros((2, 3, 30, 32), bool)
    masks[0, 1, 8:16, 16:32] = True
    found = mean_under(features, masks)
    np.testing.assert_allclose(found[0], features[0, 1, 1, 2:].mean(0), atol=1e-6)
    np.testing.assert_array_equal(found[1], 0)
    grad = jax.grad(lambda x: normalize(mean_under(x, masks)).sum())(jnp.asarray(features))
    assert np.isfinite(grad).all()


def test_without_masks_only_words_are_learned():
    rng = np.random.default_rng(0)
    masks = rng.uniform(size=(2, 1, 2, 16, 16)) < 0.4
    batch = {
        "supervised": np.array([[True], [True]]),
        "target_masks": masks[:, :, :1],
        "target_labels": np.ones((2, 1, 1), np.int32),
        "target_valid": np.ones((2, 1, 1), bool),
        "phrase_targets": masks,
        "phrase_valid": np.ones((2, 2), bool),
        "phrase_objects": np.array([[1, 2], [3, 4]], np.int32),
    }
    outputs = {"location_logits": rng.standard_normal((2, 1, 2, 2, 2)).astype(np.float32)}
    loss = {"masks": False, "localization_weight": 3.0, "align_weight": 0.0}
    total, terms = compute_losses(outputs, batch, None, loss_config=ConfigDict(loss))
    assert list(terms) == ["loss_localization"]
    expected = 3 * localization_loss(outputs["location_logits"], batch)
    np.testing.assert_allclose([total, terms["loss_localization"]], expected, rtol=1e-6)
