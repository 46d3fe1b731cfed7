"""The losses of a clip's expressions, by their definitions."""

import numpy as np
import pytest

from avs_jax.losses.cells import cell_shares
from avs_jax.losses.localization import localization_loss, localization_norms, phrase_pairs
from avs_jax.losses.referral import info_nce


def make(seed, height=20, width=12):
    """Two clips of one frame, four expressions; images padded to 24 x 16, cells of 8 px."""
    rng = np.random.default_rng(seed)
    masks = rng.uniform(size=(2, 1, 4, height, width)) < 0.4
    masks[0, 0, 3] = masks[0, 0, 1]  # the same object
    masks[1, 0, 1] = False  # means nothing
    return rng.standard_normal((2, 1, 4, 3, 2)).astype(np.float32), {
        "phrase_targets": masks,
        "phrase_valid": np.array([[True, True, True, True], [True, True, True, False]]),
        "phrase_objects": np.array([[5, 6, 7, 6], [8, 0, 9, 0]], np.int32),
        "phrase_ids": rng.integers(3, 9, (2, 4, 5)).astype(np.int32),
        "supervised": np.array([[True], [True]]),
    }


def shares(mask):
    padded = np.zeros((24, 16))
    padded[:20, :12] = mask
    return padded.reshape(3, 8, 2, 8).mean((1, 3))


def by_definition(logits, batch):
    cells, contrasts = [], []
    for b in np.flatnonzero(batch["supervised"][:, 0]):
        phrases = np.flatnonzero(batch["phrase_valid"][b])
        share = {p: shares(batch["phrase_targets"][b, 0, p]) for p in phrases}
        objects = {batch["phrase_objects"][b, p]: share[p] for p in phrases if share[p].any()}
        for p in phrases:
            logit = logits[b, 0, p].astype(np.float64)
            q = 1 / (1 + np.exp(-logit))
            cells.append((-share[p] * np.log(q) - (1 - share[p]) * np.log(1 - q)).mean())
            if share[p].any() and len(objects) > 1:
                score = {o: (logit * s).sum() / s.sum() for o, s in objects.items()}
                total = sum(np.exp(x) for x in score.values())
                contrasts.append(np.log(total) - score[batch["phrase_objects"][b, p]])
    return np.mean(cells) + (np.mean(contrasts) if contrasts else 0)


def test_cells_and_objects_against_expressions():
    logits, batch = make(0)
    found = localization_loss(logits, batch)
    np.testing.assert_allclose(found, by_definition(logits, batch), rtol=1e-6)
    batch["supervised"][0] = False
    found = localization_loss(logits, batch)
    np.testing.assert_allclose(found, by_definition(logits, batch), rtol=1e-6)
    batch["supervised"][:] = False
    assert localization_loss(logits, batch) == 0


def test_what_does_not_exist_does_not_count():
    logits, batch = make(1)
    loss = localization_loss(logits, batch)
    logits[1, 0, 3] += 5  # not an expression
    assert localization_loss(logits, batch) == loss
    logits[1, 0, 1] += 5  # an expression that means nothing
    assert localization_loss(logits, batch) > loss


@pytest.mark.parametrize("supervised", [(True, True), (True, False)])
def test_micro_batches_sum_to_the_whole(supervised):
    logits, batch = make(2)
    batch["supervised"] = np.array(supervised)[:, None]
    norms = localization_norms(batch)
    parts = []
    for row in (slice(1), slice(1, 2)):
        micro = {name: value[row] for name, value in batch.items()}
        parts.append(localization_loss(logits[row], micro, norms))
    np.testing.assert_allclose(sum(parts), localization_loss(logits, batch), rtol=1e-6)


def test_a_cell_is_the_share_that_its_pixels_have():
    masks = np.zeros((1, 1, 1, 16, 16), bool)
    masks[..., :4, :8] = True
    np.testing.assert_array_equal(cell_shares(masks, (2, 2), 8)[0, 0, 0], [[0.5, 0], [0, 0]])


def test_objects_go_with_all_expressions_of_the_batch():
    _, batch = make(2)
    features = np.random.default_rng(3).standard_normal((2, 1, 3, 2, 6)).astype(np.float32)
    batch["phrase_ids"][1, 0] = batch["phrase_ids"][0, 0]  # another object with equal words
    mean, pairs = phrase_pairs(features, batch)
    share = shares(batch["phrase_targets"][1, 0, 2])
    expected = np.einsum("hw,hwe->e", share, features[1, 0]) / share.sum()
    np.testing.assert_allclose(mean[6], expected, rtol=1e-5)
    assert pairs["has_object"].tolist() == [True, True, True, True, True, False, True, False]
    assert np.argwhere(pairs["ignored"]).tolist() == [[0, 4], [4, 0]]
    similarity = np.random.default_rng(4).standard_normal((8, 8)).astype(np.float32)
    loss, counts = info_nce(similarity, **pairs)
    assert counts["align_anchors"] == 6
    assert counts["align_positives"] == pytest.approx((1 + 2 + 1 + 2 + 1 + 1) / 6)
    for i, j in ((0, 4), (4, 0), (2, 7), (7, 2)):  # equal words; what does not exist
        other = similarity.copy()
        other[i, j] += 3
        assert info_nce(other, **pairs)[0] == loss
    other = similarity.copy()
    other[0, 5] += 3  # words that mean nothing are a negative
    assert info_nce(other, **pairs)[0] > loss
