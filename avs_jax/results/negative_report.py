"""The negative-audio numbers (negatives.py) as text and Markdown, with a sentence on each."""

from collections.abc import Mapping, Sequence
from typing import Any

from avs_jax.results.negatives import SMALL_SHARE, Number
from avs_jax.spec import NEGATIVE_AUDIO, REFERENCE

SOUND_REMOVED = "silence_zeros"
MOTION_CONTROLS = ("zero_flow", "shuffled_flow")
_MEANING = {  # the one under which nothing of the picture is heard, as a clause
    "silence_zeros": "With digital silence",
    "silence_dither": "With noise at -80 dBFS",
    "noise_white": "With white noise",
    "noise_pink": "With pink noise",
    "offscreen": "With the sound of something of another kind",
    "shift": "With another second of its own sound",
    "swapped_audio": "With the sound of another category",
    "audio_in_picture": "With the sound of a silent object in the picture",
}
_G_NAMES = {"published": "silence, noise and offscreen", "all": "all types that were run"}


def sections(numbers: Mapping[str, Any]) -> list[tuple[str, list[list[str]], list[str]]]:
    """The report in parts, each (heading, table with its header, sentences).

    Args:
      numbers: of `negatives.summarise`, and under "facts" what the sentences mention:
        manifest_sha256, moving_threshold, and task ("binary" or "semantic").
    """
    found = numbers["conditions"]
    heard = [name for name in found if name not in (REFERENCE, *MOTION_CONTROLS)]
    parts = [("False sounds", _sound_table(found, heard), _sound_sentences(numbers, heard))]
    if numbers["summary"]:
        parts.append(("Together", _summary_table(numbers), _summary_sentences(numbers)))
    controls = [name for name in MOTION_CONTROLS if name in found]
    if controls:
        controls += [SOUND_REMOVED] if SOUND_REMOVED in found else []
        parts.append(("False motion", _motion_table(found, controls), _motion_sentences(found)))
    return parts


def to_markdown(numbers: Mapping[str, Any]) -> str:
    """Headings of the third level, tables and lists."""
    blocks = []
    for heading, rows, sentences in sections(numbers):
        lines = [f"### {heading}", ""]
        lines.append("| " + " | ".join(rows[0]) + " |")
        lines.append("|---|" + "---:|" * (len(rows[0]) - 1))
        lines += ["| " + " | ".join(row) + " |" for row in rows[1:]]
        blocks.append("\n".join([*lines, "", *(f"- {s}" for s in sentences)]) + "\n")
    return "\n".join(blocks)


def to_text(numbers: Mapping[str, Any]) -> str:
    """For a terminal: aligned tables."""
    blocks = []
    for heading, rows, sentences in sections(numbers):
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [heading, ""]
        for row in rows:
            words = [w.rjust(n) for w, n in zip(row, widths, strict=True)]
            lines.append("  ".join([row[0].ljust(widths[0]), *words[1:]]).rstrip())
        blocks.append("\n".join([*lines, "", *(f"- {s}" for s in sentences)]) + "\n")
    return "\n".join(blocks)


# ---- tables ----


def _sound_table(found: Mapping[str, Any], heard: Sequence[str]) -> list[list[str]]:
    rows = [
        ["audio", "mIoU %", "f_beta %", "gap mIoU", "gap f_beta", "FPR %", "FPR moving %"]
        + ["FPR static %", f"area < {100 * SMALL_SHARE:g} %"]
    ]
    for name in (REFERENCE, *heard):
        c = found[name]
        gaps = [_interval(c["gap_mIoU"]), _percent(c["gap_f_beta"])] if name in heard else ["", ""]
        rows.append(
            [_words(name), _interval(c["mIoU"]), _percent(c["f_beta"]), *gaps]
            + [_interval(c["FPR"]), _percent(c["FPR_moving"]), _percent(c["FPR_static"])]
            + [_percent(c["small"])]
        )
    return rows


def _summary_table(numbers: Mapping[str, Any]) -> list[list[str]]:
    rows = [["over", "N mIoU %", "N f_beta %", "G-mIoU %", "G-f_beta %", "G-FPR %"]]
    for each in numbers["summary"].values():
        keys = ("N-mIoU", "N-f_beta", "G-mIoU", "G-f_beta", "G-FPR")
        rows.append([", ".join(each["types"]), *(_interval(each[key]) for key in keys)])
    return rows


def _motion_table(found: Mapping[str, Any], controls: Sequence[str]) -> list[list[str]]:
    rows = [["sound, motion", "mIoU %", "f_beta %", "lost mIoU"]]
    rows[0] += ["off target, moving %", "off target, static %"]
    for name in (REFERENCE, *controls):
        c = found[name]
        title = {REFERENCE: "own, own", SOUND_REMOVED: "none, own"}.get(name)
        title = title or f"own, {name.removesuffix('_flow')}"
        lost = _interval(c["gap_mIoU"]) if name != REFERENCE else ""
        off = [_interval(c[f"off_target_{part}"]) for part in ("moving", "static")]
        rows.append([title, _interval(c["mIoU"]), _percent(c["f_beta"]), lost, *off])
    return rows


# ---- sentences ----


def _sound_sentences(numbers, heard) -> list[str]:
    found, clips, facts = numbers["conditions"], numbers["clips"], numbers["facts"]
    true = found[REFERENCE]
    semantic = facts["task"] == "semantic"
    what = (
        "mean over the classes of the ground truth without background; FPR is the share of the "
        "pixels whose class is not background"
        if semantic
        else "FPR is the share of the pixels with p > 0.5"
    )
    sentences = [
        f"Scores are against the original masks, over {numbers['frames']} frames with an object "
        f"of {clips} clips ({what}); in brackets, 95 % intervals over resampled clips.",
        f"A pixel moves where its motion map exceeds {facts['moving_threshold']}: "
        f"{_percent(numbers['moving_share'])} % of all pixels. Pairing manifest: sha256 "
        f"{facts['manifest_sha256']}.",
        f"With its own sound the model scores {_percent(true['mIoU'])} mIoU and marks "
        f"{_percent(true['FPR'])} % of the pixels, the object's own among them.",
    ]
    for name in heard:
        c = found[name]
        left_out = f" ({c['clips']} of {clips} clips)" if c["clips"] < clips else ""
        sentences.append(
            f"{_MEANING.get(name, _words(name))}{left_out} it still overlaps the original mask by "
            f"{_percent(c['mIoU'])} mIoU and {_percent(c['f_beta'])} f_beta, "
            f"{_percent(c['gap_mIoU'])} and {_percent(c['gap_f_beta'])} points less; it marks "
            f"{_percent(c['FPR'])} % of the pixels ({_percent(c['FPR_moving'])} % of the moving, "
            f"{_percent(c['FPR_static'])} % of the static ones) and nothing in "
            f"{_percent(c['small'])} % of the frames." + _shift_caution(name)
        )
    floor = numbers["floor_f_beta"]["value"]
    if floor is not None:
        sentences.append(
            f"f_beta cannot fall below {_percent(floor)} %, which a mask of all pixels has."
        )
    return sentences


def _shift_caution(name: str) -> str:
    if name not in NEGATIVE_AUDIO["shift"]:
        return ""
    return (
        " Where the object sounds all the time this is still its sound and the mask still right: "
        "a small gap is then no fault."
    )


def _summary_sentences(numbers: Mapping[str, Any]) -> list[str]:
    sentences = []
    for name, each in numbers["summary"].items():
        over = _G_NAMES[name]
        for score in ("mIoU", "f_beta"):
            value, deaf = each[f"G-{score}"], each[f"deaf-G-{score}"]
            sentences.append(
                f"G-{score} over {over} is {_percent(value)}: 100 is the whole object under its "
                "sound and nothing under false ones; a model of the same "
                f"{score} that does not hear has {_percent(deaf)}."
            )
        sentences.append(
            f"G-FPR over {over} is {_percent(each['G-FPR'])} %: what is marked although nothing "
            "in the picture is heard; 0 is best."
        )
    for kind, gaps in numbers["types"].items():
        sentences.append(
            f"Audio gap of {kind}: {_interval(gaps['gap_mIoU'])} points of mIoU and "
            f"{_interval(gaps['gap_f_beta'])} of f_beta depend on hearing anything else; "
            "0 is a model that ignores the sound."
        )
    return sentences


def _motion_sentences(found: Mapping[str, Any]) -> list[str]:
    """Off target: the share of the pixels outside the mask that are predicted."""
    true = found[REFERENCE]
    sentences = [
        "Off target is the share of the pixels outside the mask that are marked: "
        f"{_percent(true['off_target_moving'])} % of the moving and "
        f"{_percent(true['off_target_static'])} % of the static ones with own sound and motion."
    ]
    for name in (*MOTION_CONTROLS, SOUND_REMOVED):
        if name not in found:
            continue
        what = {"zero_flow": "Without motion", "shuffled_flow": "With another clip's motion"}
        c, gap = found[name], found[name]["gap_mIoU"]
        unclear = gap["low"] is not None and gap["low"] <= 0 <= gap["high"]
        verdict = (
            "no difference that another choice of clips would not undo"
            if unclear
            else f"{_percent(abs(gap['value']))} points "
            + ("less than" if gap["value"] > 0 else "more than")
            + " with both its own"
        )
        sentences.append(
            f"{what.get(name, 'Without sound')} mIoU is {_percent(c['mIoU'])}, {verdict}; off "
            f"target {_percent(c['off_target_moving'])} % of the moving and "
            f"{_percent(c['off_target_static'])} % of the static pixels."
        )
    return sentences


def _words(name: str) -> str:
    return name.replace("_", " ")


def _percent(number: Number | float | None) -> str:
    value = number["value"] if isinstance(number, Mapping) else number
    return "–" if value is None else f"{100 * value:.2f}"


def _interval(number: Number) -> str:
    if number["value"] is None or number["low"] is None:
        return _percent(number)
    return f"{_percent(number)} [{100 * number['low']:.1f}, {100 * number['high']:.1f}]"
