"""Captions, scored against references: BLEU by counts, and CIDEr-D. NumPy only.

  BLEU-n   BP exp(mean over k <= n of log p_k);  p_k = clipped k-grams of all captions that a
           reference has / k-grams of all captions;  BP = exp(min(0, 1 - r / c)), c the words of all
           captions, r those of the references closest in length (of two as close, the shorter).
           0 if no k-gram of some order is found
  CIDEr-D  10 mean over captions, references and n <= 4 of exp(-(l_c - l_r)^2 / 72)
           <min(g_c, g_r), g_r> / (|g_c| |g_r|),  g = counts of n-grams times log(N / df), df the
           number of captioned things whose references have the n-gram, N their number

Sources: Papineni et al. (ACL 2002); Vedantam et al. (CVPR 2015) as in pycocoevalcap. No smoothing:
an order that is empty gives exactly 0, where others give tiny numbers.
"""

import collections
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

ORDERS = 4
SIGMA = 6.0  # words, of CIDEr-D's length penalty

Words = Sequence[str]
NGrams = collections.Counter


class Counts(NamedTuple):
    """What BLEU is made of; sums over captions.

    Attributes:
      matches, totals: n-grams found in a reference, clipped, and all, by order.
      length, reference_length: words of captions, and of their closest references.
    """

    matches: list[int]
    totals: list[int]
    length: int
    reference_length: int


def ngrams(words: Words, order: int) -> NGrams:
    """How often each n-gram occurs."""
    words = list(words)
    return NGrams(tuple(words[i : i + order]) for i in range(len(words) - order + 1))


def bleu_counts(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> Counts:
    """Counts of captions; `references` has at least one for each."""
    matches, totals = [0] * ORDERS, [0] * ORDERS
    length = reference_length = 0
    for caption, known in zip(captions, references, strict=True):
        length += len(caption)
        _, closest = min((abs(len(r) - len(caption)), len(r)) for r in known)
        reference_length += closest
        for k in range(ORDERS):
            found, most = ngrams(caption, k + 1), NGrams()
            for reference in known:
                most |= ngrams(reference, k + 1)
            matches[k] += (found & most).total()
            totals[k] += found.total()
    return Counts(matches, totals, length, reference_length)


def bleu(counts: Counts) -> list[float]:
    """BLEU-1 to BLEU-4."""
    if not counts.length:
        return [0.0] * ORDERS
    brevity = math.exp(min(0.0, 1 - counts.reference_length / counts.length))
    found, logs = [], 0.0
    for order, (match, total) in enumerate(zip(counts.matches, counts.totals, strict=True), 1):
        logs = logs + math.log(match / total) if match and logs > -math.inf else -math.inf
        found.append(brevity * math.exp(logs / order))
    return found


def cider_d(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> np.ndarray:
    """CIDEr-D of every caption, float64 [N], 0 to 10; the corpus has their mean."""
    frequency: NGrams = NGrams()
    for known in references:
        seen = {g for words in known for k in range(1, ORDERS + 1) for g in ngrams(words, k)}
        frequency.update(seen)
    log_count = math.log(max(len(references), 1))

    def vectors(words: Words) -> list[dict[tuple, float]]:
        return [
            {
                g: count * (log_count - math.log(max(1, frequency[g])))
                for g, count in ngrams(words, k).items()
            }
            for k in range(1, ORDERS + 1)
        ]

    scores = []
    for caption, known in zip(captions, references, strict=True):
        ours, total = vectors(caption), 0.0
        for reference in known:
            penalty = math.exp(-((len(caption) - len(reference)) ** 2) / (2 * SIGMA**2))
            for a, b in zip(ours, vectors(reference), strict=True):
                norms = _norm(a) * _norm(b)
                overlap = sum(min(x, b[g]) * b[g] for g, x in a.items() if g in b)
                total += penalty * overlap / norms if norms else 0.0
        scores.append(10 * total / (ORDERS * len(known)))
    return np.array(scores)


def _norm(vector: dict[tuple, float]) -> float:
    return math.sqrt(sum(x * x for x in vector.values()))
