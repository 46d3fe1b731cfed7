"""The numbers of false sounds and false motion (negatives.py) as tables with legends."""

from collections.abc import Mapping, Sequence
from typing import Any

from avs_jax.results.negatives import NEAR_EMPTY, Number
from avs_jax.results.report import percent
from avs_jax.spec import NEGATIVE_AUDIO, TRUE_AUDIO
from avs_jax.task import Section

SOUND_REMOVED = "silence_zeros"
MOTION_CONTROLS = {
    "zero_flow": "own, zero",
    "shuffled_flow": "own, shuffled",
    "scrambled_track": "own, scrambled",
}
# Conditions that only these tables show.
CONDITIONS = frozenset(MOTION_CONTROLS).union(*NEGATIVE_AUDIO.values())

Column = tuple[str, str, bool]  # title, key of a Number, with its interval

_GAPS: tuple[Column, ...] = (("gap mIoU", "gap_mIoU", True), ("gap f_beta", "gap_f_beta", True))
_SOURCE: Column = ("right source %", "right_source", True)  # of clips with look-alikes
_SOUND: tuple[Column, ...] = (
    ("mIoU %", "mIoU", True),
    ("f_beta %", "f_beta", False),
    _SOURCE,
    *_GAPS,
    ("FPR %", "FPR", True),
    ("FPR moving %", "FPR_moving", False),
    ("FPR static %", "FPR_static", False),
    ("near empty %", "frac_near_empty", False),
)
_SUMMARY: tuple[Column, ...] = (
    *((f"{name} %", name, True) for name in ("N-mIoU", "N-f_beta", "G-mIoU", "G-f_beta", "G-FPR")),
    ("audio-blind G-mIoU %", "audio_blind_G-mIoU", False),
    ("audio-blind G-f_beta %", "audio_blind_G-f_beta", False),
)
_MOTION: tuple[Column, ...] = (
    ("mIoU %", "mIoU", True),
    ("f_beta %", "f_beta", False),
    _SOURCE,
    *_GAPS,
    ("FPR outside, moving %", "fpr_outside_moving", True),
    ("FPR outside, static %", "fpr_outside_static", True),
)


def sections(numbers: Mapping[str, Any]) -> list[Section]:
    """The tables of a report.

    Args:
      numbers: of `negatives.summarize`, and under "facts" what the legend mentions:
        manifest_sha256, moving_threshold, and task ("binary" or "semantic").
    """
    found, summary = numbers["conditions"], numbers["summary"]
    heard = {name: c for name, c in found.items() if name not in MOTION_CONTROLS}
    parts = [("False sounds", _table("audio", _named(heard, numbers), _SOUND), _legend(numbers))]
    if summary:
        kinds = {", ".join(each["types"]): each for each in summary.values()}
        legend = [
            "N: mean over these types of false sound. G = 2 P (1 - N) / (P + 1 - N), P the score "
            "under the true sound, both over the clips that have all of these sounds: 100 for the "
            "whole object under its own sound and nothing under false ones. Audio-blind: G of a "
            "model with the same P that ignores the sound.",
            "G-FPR: mean FPR over these types; 0 is best.",
        ]
        parts.append(("Together", _table("over", _named(kinds, numbers), _SUMMARY), legend))
        parts.append(("Gap by type", _table("type", numbers["types"], _GAPS), []))
    controls = [name for name in MOTION_CONTROLS if name in found]
    if controls:
        titles = {
            TRUE_AUDIO: "own, own",
            **{name: MOTION_CONTROLS[name] for name in controls},
            SOUND_REMOVED: "none, own",
        }
        rows = {title: found[name] for name, title in titles.items() if name in found}
        legend = [
            "Gap: points lost to own sound and motion. FPR outside: share of the pixels outside "
            "the true mask that are predicted."
        ]
        parts.append(("False motion", _table("sound, motion", rows, _MOTION), legend))
    return parts


def _legend(numbers: Mapping[str, Any]) -> list[str]:
    facts, floor = numbers["facts"], numbers["floor_f_beta"]
    predicted = "p > 0.5" if facts["task"] == "binary" else "a class other than background"
    averaged = "" if facts["task"] == "binary" else ", means over its classes without background"
    legend = [
        f"IoU and f_beta are against the original masks{averaged}, over {numbers['frames']} frames "
        f"with an object of {numbers['clips']} clips; [95 % intervals over resampled clips].",
        "Gap: points lost to the true sound; 0 for a model that ignores the sound.",
        f"FPR: share of the pixels with {predicted}; moving: motion above "
        f"{facts['moving_threshold']}, {percent(numbers['moving_share'])} % of the pixels. Near "
        f"empty: frames with less than {100 * NEAR_EMPTY:g} % of the pixels predicted.",
    ]
    if floor["value"] is not None:
        legend.append(f"f_beta cannot fall below that of a full mask, {percent(floor['value'])} %.")
    if {"shift", "late"} & numbers["conditions"].keys():
        legend.append(
            "Shift, late: where the object sounds throughout, the moved sound is still its own, so "
            "a small gap is no fault. Late takes away what synchrony found."
        )
    if "right_source" in numbers["conditions"][TRUE_AUDIO]:
        legend.append("Right source: frames that mark the right one of two look-alikes.")
    return [*legend, f"Pairing manifest: sha256 {facts['manifest_sha256']}."]


def _named(conditions: Mapping[str, Any], numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Conditions by title, which says how many clips a condition has if it lacks some."""
    named = {}
    for name, values in conditions.items():
        title = name.replace("_", " ")
        if values["clips"] < numbers["clips"]:
            title += f" ({values['clips']} of {numbers['clips']} clips)"
        named[title] = values
    return named


def _table(corner: str, rows: Mapping[str, Any], columns: Sequence[Column]) -> list[list[str]]:
    columns = [column for column in columns if any(column[1] in row for row in rows.values())]
    table = [[corner, *(title for title, _, _ in columns)]]
    for name, values in rows.items():
        cells = [_cell(values[key], full) if key in values else "" for _, key, full in columns]
        table.append([name, *cells])
    return table


def _cell(number: Number, interval: bool) -> str:
    """A share as a percentage, with its interval where asked and defined."""
    text = percent(number["value"])
    if interval and number["low"] is not None:
        text += f" [{100 * number['low']:.1f}, {100 * number['high']:.1f}]"
    return text
