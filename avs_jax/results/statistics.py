"""Statistics of a comparison: is variant A better than variant B?

Scores are paired arrays [R, C] of R runs and C clips: run r of both variants had the same seed, and
clip c is the same clip. With D = A - B there are two sources of chance, and a test for each:

  training  d_r = mean_c D[r, c]   paired t-test with interval, and the exact sign-flip test: the
                                   share of the 2^R sign patterns whose |sum| reaches that of d
  test set  e_c = mean_r D[r, c]   bootstrap interval over resampled clips

The sign-flip p cannot be below 2 / 2^R (0.25 for 3 runs, 0.0625 for 5, 0.03125 for 6), so this
floor belongs next to it. Several contrasts at once: `holm`.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import special

NUM_RESAMPLES = 10_000
CONFIDENCE = 0.95
MAX_RUNS = 16  # the sign-flip test enumerates 2^R patterns


@dataclasses.dataclass(frozen=True)
class Contrast:
    """How variant A differs from variant B.

    Attributes:
      num_runs: R.
      difference: mean of A - B.
      low, high: confidence interval over runs (paired t); NaN for one run.
      t, p_t: of the paired t-test; NaN for one run.
      p_sign_flip: of the exact sign-flip test, two-sided.
      p_floor: the smallest p_sign_flip that R runs can have.
      clips_low, clips_high: bootstrap interval over clips; NaN without clips.
    """

    num_runs: int
    difference: float
    low: float
    high: float
    t: float
    p_t: float
    p_sign_flip: float
    p_floor: float
    clips_low: float
    clips_high: float


def compare(
    a: np.ndarray,
    b: np.ndarray,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    by_run: np.ndarray | None = None,
) -> Contrast:
    """Compares paired scores.

    Args:
      a, b: float [R, C], scores of each run on each clip.
      num_resamples, seed: of the bootstrap.
      by_run: float [R], differences of the runs' own numbers, where a protocol's number is not the
        mean over clips; None: those means. The interval over clips lies around their mean.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 2 or a.shape != b.shape or not len(a) or not (a.size or by_run is not None):
        raise ValueError(f"scores {a.shape} and {b.shape}: expected [R, C] twice")
    by_clip = (a - b).mean(axis=0)
    by_run = (a - b).mean(axis=1) if by_run is None else np.asarray(by_run, np.float64)
    t, p_t, low, high = paired_t(by_run)
    clips_low, clips_high = np.nan, np.nan
    if len(by_clip):
        center = by_run.mean() - by_clip.mean()
        clips_low, clips_high = bootstrap(by_clip + center, num_resamples, seed)
    return Contrast(
        num_runs=len(a),
        difference=float(by_run.mean()),
        low=low,
        high=high,
        t=t,
        p_t=p_t,
        p_sign_flip=sign_flip(by_run),
        p_floor=2 / 2 ** len(a),
        clips_low=clips_low,
        clips_high=clips_high,
    )


def paired_t(differences: np.ndarray) -> tuple[float, float, float, float]:
    """(t, two-sided p, low, high) of the mean of differences [R]; NaN for one."""
    count, mean = len(differences), float(np.mean(differences))
    if count < 2:
        return (np.nan,) * 4
    error = float(np.std(differences, ddof=1)) / np.sqrt(count)
    t = mean / error if error else np.copysign(np.inf, mean) if mean else 0.0
    p = 2 * special.stdtr(count - 1, -abs(t))
    reach = special.stdtrit(count - 1, (1 + CONFIDENCE) / 2) * error
    return float(t), float(p), float(mean - reach), float(mean + reach)


def sign_flip(differences: np.ndarray) -> float:
    """Two-sided p of differences [R] by the exact sign-flip (paired permutation) test."""
    count = len(differences)
    if not 0 < count <= MAX_RUNS:
        raise ValueError(f"{count} runs, expected 1 to {MAX_RUNS}")
    flips = np.arange(2**count)[:, None] >> np.arange(count)[None] & 1
    sums = np.abs((1 - 2 * flips) @ np.asarray(differences, np.float64))
    rounding = 1e-12 * np.abs(differences).sum()
    return float(np.mean(sums >= sums[0] - rounding))


def bootstrap(values: np.ndarray, num_resamples: int, seed: int) -> tuple[float, float]:
    """Percentile interval of the mean of values [C] over resamples with replacement."""
    means = resample_weights(len(values), num_resamples, seed)[1:] @ values / len(values)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def resample_weights(num_clips: int, num_resamples: int, seed: int) -> np.ndarray:
    """float64 [1 + R, C]: how often each clip is in each resample; row 0 is the split itself."""
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(num_clips, np.full(num_clips, 1 / num_clips), num_resamples)
    return np.concatenate([np.ones((1, num_clips)), drawn])


def holm(p_values: Sequence[float]) -> np.ndarray:
    """p values [M] adjusted for M contrasts (Holm's step-down); NaN stays and does not count."""
    adjusted = np.array(p_values, np.float64)
    tested = np.flatnonzero(~np.isnan(adjusted))
    order = tested[np.argsort(adjusted[tested], kind="stable")]
    scaled = adjusted[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return adjusted
