"""Whose sound a clip gets when an evaluation pairs pictures with false sounds."""

from collections.abc import Mapping, Sequence
from typing import Any

from avs_jax.controls.altered import Altered


def swap_audio(categories: Mapping[str, str]) -> dict[str, str]:
    """Pairs each clip with a clip of another category; depends on ids and categories only.

    Clips stand in a circle, sorted by category and id, and take the sound of the one as many
    places on as the largest category has clips: so every sound is used once, and never within its
    category. Where one category has more than half of the clips, its clips take the others' sounds
    in turn, several times over.

    Args:
      categories: clip id -> category.

    Returns:
      clip id -> id of the clip whose sound it gets.

    Raises:
      ValueError: all clips are of one category.
    """
    order = sorted(categories, key=lambda clip: (categories[clip], clip))
    sizes = {c: sum(1 for clip in order if categories[clip] == c) for c in categories.values()}
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


def silent_audio(labels: Mapping[str, int], visible: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """Pairs each clip with a clip whose category is seen, and not heard, in its picture.

    Args:
      labels: clip id -> category that sounds.
      visible: clip id -> categories in the picture.

    Returns:
      clip id -> id of the clip whose sound it gets, for the clips that have such a partner.
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
    """Records whose sound is another record's.

    Args:
      pairs: (place of the record, place of the record whose waveform and rate it gets).
    """

    def replace(_: Mapping[str, Any], item: int) -> dict[str, Any]:
        heard = records[pairs[item][1]]
        return {name: heard[name] for name in ("waveform", "sample_rate")}

    return Altered(records, [frames for frames, _ in pairs], replace)
