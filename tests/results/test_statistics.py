"""Statistics of comparisons against SciPy, enumeration and resampling one by one."""

import itertools

import numpy as np
import pytest
from scipy import stats

from avs_jax.results import statistics

THREE, FIVE = (0.8, 1.1, 0.5), (0.8, 1.1, 0.5, 0.9, 0.4)


@pytest.mark.parametrize(
    "differences, t, p, p_sign_flip",
    [(THREE, 4.618802, 0.043817, 0.25), (FIVE, 5.743514, 0.004554, 0.0625)],
)
def test_worked_examples(differences, t, p, p_sign_flip):
    a = np.array(differences)[:, None] + np.zeros((len(differences), 4))
    found = statistics.compare(a, np.zeros_like(a), num_resamples=10)
    assert (found.t, found.p_t) == pytest.approx((t, p), abs=5e-7)
    assert found.p_sign_flip == found.p_floor == p_sign_flip
    assert found.difference == pytest.approx(np.mean(differences))
    assert found.num_runs == len(differences)


@pytest.mark.parametrize("seed", range(4))
def test_paired_t_is_scipys(seed):
    differences = np.random.default_rng(seed).normal(0.3, 1, 3 + 2 * seed)
    want = stats.ttest_1samp(differences, 0)
    interval = want.confidence_interval(0.95)
    np.testing.assert_allclose(
        statistics.paired_t(differences), (*want, interval.low, interval.high), rtol=1e-9
    )


def test_sign_flip_is_every_pattern_tried():
    rng = np.random.default_rng(0)
    for count_, values in itertools.product((1, 2, 5, 8), ("normal", "ties")):
        d = rng.normal(0.4, 1, count_) if values == "normal" else rng.integers(-2, 3, count_) / 10
        sums = [abs(np.dot(signs, d)) for signs in itertools.product((1, -1), repeat=count_)]
        want = np.mean([s >= abs(d.sum()) - 1e-9 for s in sums])
        assert statistics.sign_flip(d) == pytest.approx(want)
    d = rng.normal(0.4, 1, 7)
    scipys = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=2**7)
    assert statistics.sign_flip(d) == pytest.approx(scipys.pvalue)
    for count_ in (0, 17):
        with pytest.raises(ValueError, match=f"{count_} runs"):
            statistics.sign_flip(np.ones(count_))


def test_degenerate_differences():
    one = statistics.compare(np.array([[1.0, 2.0]]), np.zeros((1, 2)))
    assert one.difference == 1.5 and np.isnan([one.t, one.p_t, one.low, one.high]).all()
    assert one.p_sign_flip == one.p_floor == 1
    equal = statistics.compare(np.ones((3, 4)), np.ones((3, 4)))
    assert (equal.t, equal.p_t, equal.low, equal.high, equal.p_sign_flip) == (0, 1, 0, 0, 1)
    constant = statistics.compare(np.ones((3, 4)), np.zeros((3, 4)))
    assert constant.t == np.inf and constant.p_t == 0 and constant.low == constant.high == 1
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(3, 5\)"):
        statistics.compare(np.ones((3, 4)), np.ones((3, 5)))


def test_bootstrap_resamples_clips_after_averaging_over_runs():
    rng = np.random.default_rng(1)
    a, b = rng.random((2, 3, 20))
    found = statistics.compare(a, b, num_resamples=300, seed=7)
    means = []
    for row in statistics.resample_weights(20, 300, 7)[1:]:
        chosen = np.repeat(np.arange(20), row.astype(int))
        assert len(chosen) == 20
        means.append(np.mean([(a[r, c] - b[r, c]) for r in range(3) for c in chosen]))
    np.testing.assert_allclose(
        (found.clips_low, found.clips_high), np.quantile(means, (0.025, 0.975)), atol=1e-12
    )
    assert found.clips_low < found.difference < found.clips_high
    # Its width is that of the standard error, for many clips.
    values = rng.normal(size=2000)
    low, high = statistics.bootstrap(values, 4000, 0)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(2000), rel=0.05)


def test_swapping_the_variants_changes_the_sign():
    a, b = np.random.default_rng(2).random((2, 5, 9))
    forward, back = statistics.compare(a, b), statistics.compare(b, a)
    assert forward.difference == pytest.approx(-back.difference)
    assert (forward.low, forward.clips_low) == pytest.approx((-back.high, -back.clips_high))
    same = ("p_t", "p_sign_flip", "p_floor")
    assert [getattr(forward, n) for n in same] == pytest.approx([getattr(back, n) for n in same])


def test_holm():
    # Sorted: 0.01 * 4, 0.02 * 3, 0.03 * 2 (raised to its predecessor), 0.2.
    found = statistics.holm([0.03, 0.2, 0.01, 0.02])
    np.testing.assert_allclose(found, [0.06, 0.2, 0.04, 0.06])
    np.testing.assert_allclose(statistics.holm([0.6, 0.7]), [1, 1])
    np.testing.assert_allclose(statistics.holm([np.nan, 0.02, 0.03]), [np.nan, 0.04, 0.04])
