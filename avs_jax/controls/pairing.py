"""Pairs of clips for evaluations with another clip's sound, or another row's text."""

import collections
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from avs_jax.controls.altered import Altered


def swap_audio(categories: Mapping[str, str]) -> dict[str, str]:
    """Pairs each clip with a clip of another category; depends on ids and categories only.

    Clips are sorted by category and id. Each takes the sound of the clip n places further
    (cyclically), n the size of the largest category, so every sound is used once and never within
    its category. If one category has more than half of the clips, the sounds of the others repeat.

    Where any category is several, joined by "+", a clip's partner sounds like none of its own.
    Sounds are used as evenly as possible, and clips without such a partner are left out.

    Args:
      categories: clip id -> category; ValueError if no clip has a partner.

    Returns:
      clip id -> id of the clip whose sound it gets.
    """
    if any("+" in category for category in categories.values()):
        return _swap_disjoint(categories)
    order = sorted(categories, key=lambda clip: (categories[clip], clip))
    sizes = collections.Counter(categories.values())
    if len(sizes) < 2:
        raise ValueError(f"swapped audio needs two categories, all clips are of {list(sizes)}")
    shift = max(sizes.values())
    if 2 * shift <= len(order):
        return {clip: order[(i + shift) % len(order)] for i, clip in enumerate(order)}
    pairs = {}
    for i, clip in enumerate(order):
        others = [other for other in order if categories[other] != categories[clip]]
        pairs[clip] = others[i % len(others)]
    return pairs


def _swap_disjoint(categories: Mapping[str, str]) -> dict[str, str]:
    """`swap_audio` of clips with several categories; a clip of unknown category has no partner."""
    clips = sorted(categories)
    names = [{name for name in categories[clip].split("+") if name} for clip in clips]
    known = [i for i, own in enumerate(names) if own]
    fits = [[j for j in known if own and own.isdisjoint(names[j])] for own in names]
    partners = zip(clips, least_used(fits), strict=True)
    pairs = {clip: clips[partner] for clip, partner in partners if partner is not None}
    if not pairs:
        raise ValueError("swapped audio needs two clips without a category in common")
    return pairs


def least_used(fits: Sequence[Sequence[int]]) -> list[int | None]:
    """For each place the least used of the places that fit, starting half a split away."""
    uses, partners = [0] * len(fits), []
    for i, places in enumerate(fits):
        start = i + len(fits) // 2
        best = min(places, key=lambda j: (uses[j], (j - start) % len(fits)), default=None)
        if best is not None:
            uses[best] += 1
        partners.append(best)
    return partners


def swap_texts(texts: Mapping[str, str]) -> dict[str, str]:
    """Pairs each row with a row whose text means something else, as far as words tell.

    A partner shares no word with the row ("the violin", "the violin appears"), apart from words
    that more than a quarter of the rows have ("the"). Rows are sorted by a digest of their text,
    and each takes the next such row past the number of rows of the most frequent text. Every text
    is used once while one that fits is left. If no row fits, any other text does.

    Args:
      texts: name of a row -> text; ValueError if all are equal.
    """
    sizes = collections.Counter(texts.values())
    if len(sizes) < 2:
        raise ValueError(f"swapped texts need two texts, all rows have {list(sizes)}")
    words = {text: set(re.findall(r"\w+", text.lower())) for text in sizes}
    rows_with = collections.Counter(word for text in texts.values() for word in words[text])
    content = {
        text: {word for word in found if 4 * rows_with[word] <= len(texts)}
        for text, found in words.items()
    }
    order = sorted(texts, key=lambda name: (_digest(texts[name]), name))
    shift = max(sizes.values())
    givers = order[shift:] + order[:shift]
    unused = list(givers)
    pairs = {}
    for name in order:
        text = texts[name]

        def fits(giver: str, text: str = text) -> bool:
            return texts[giver] != text and content[texts[giver]].isdisjoint(content[text])

        giver = next(filter(fits, unused), None)
        if giver is not None:
            unused.remove(giver)
        else:
            giver = next(filter(fits, givers), None) or next(g for g in givers if texts[g] != text)
        pairs[name] = giver
    return pairs


def _digest(text: str) -> str:
    """Orders texts without regard to the alphabet, where neighbors often mean the same."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def silent_audio(labels: Mapping[str, int], visible: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """Clip id -> the id of a clip of a category that is visible but silent in its frames, if any.

    By clip id, `labels` are the sounding categories, `visible` those in the frames.
    """
    by_label: dict[int, list[str]] = {}
    for clip in sorted(labels):
        by_label.setdefault(labels[clip], []).append(clip)
    pairs = {}
    for i, clip in enumerate(sorted(labels)):
        silent = sorted(set(visible[clip]) - {labels[clip]})
        partners = [partner for label in silent for partner in by_label.get(label, [])]
        if partners:
            pairs[clip] = partners[i % len(partners)]
    return pairs


def with_audio_of(
    records: Sequence[Mapping[str, Any]], pairs: Sequence[tuple[int, int]]
) -> Altered:
    """Records with another record's sound, by pairs of indices (record, source of the sound).

    A sound that is shorter than the record's own is repeated: past its end there would be nothing,
    which is not another sound.
    """

    def replace(record: Mapping[str, Any], item: int) -> dict[str, Any]:
        heard = records[pairs[item][1]]
        sound, rate = np.asarray(heard["waveform"]), int(heard["sample_rate"])
        wanted = math.ceil(len(record["waveform"]) * rate / int(record["sample_rate"]))
        if 0 < len(sound) < wanted:
            sound = np.resize(sound, (wanted, *sound.shape[1:]))
        return {"waveform": sound, "sample_rate": heard["sample_rate"]}

    return Altered(records, [frames for frames, _ in pairs], replace)
