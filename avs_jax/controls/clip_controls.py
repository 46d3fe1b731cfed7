"""The conditions of an evaluation: the same frames and ground truth with another sound or motion.

swapped_audio     each clip gets the sound of a clip of another category; of several, all are others
audio_in_picture  each clip gets the sound of a silent object in its frames, if the records name
                  the visible objects (generated clips do)
config.evaluate.audio    any of silence, noise, offscreen, shift and late (false_sounds.py)
config.evaluate.motion   with these, false motion for models that read motion (false_motion.py)
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from avs_jax.controls import false_sounds
from avs_jax.controls.false_motion import motion_controls, with_false_motion
from avs_jax.controls.pairing import silent_audio, swap_audio, with_audio_of
from avs_jax.data.clip import ClipRows
from avs_jax.data.decode import decode_text
from avs_jax.data.records import metadata
from avs_jax.spec import InputError
from avs_jax.task import Controls, Record

VISIBLE_FIELD = "visible_labels"  # of a record: categories in the frames, if known
_LEFT_OUT = {
    "offscreen": "the others have no clip of another semantic group, or the records do not say "
    "what sounds in them",
    "shift": "the others are shorter than two seconds",
    "late": "the others are shorter than two seconds",
}


def check_config(config: Any) -> None:
    """Raises InputError for a value of config.evaluate that no evaluation could follow."""
    evaluate = config.evaluate
    if evaluate.manifest and not evaluate.audio:
        raise InputError(
            f"config.evaluate.manifest is {evaluate.manifest!r}, but config.evaluate.audio names "
            "nothing to use it for"
        )
    false_sounds.conditions(evaluate.audio)
    motion_controls(evaluate.motion)


def clip_controls(config: Any, rows: ClipRows, records: Sequence[Record], split: str) -> Controls:
    """The conditions besides the true sound that config.evaluate asks for."""
    evaluate, found, notes = config.evaluate, {}, []
    ids = [decode_text(record["clip_id"]) for record in records]
    if evaluate.swapped_audio:
        found |= _swapped_sounds(records, ids, notes)
    if not evaluate.audio:
        return Controls(found, notes)
    manifest = _make_manifest(config, records, ids, split)
    found |= _negative_sounds(config, records, ids, manifest, notes)
    found |= _false_motion(config, rows, records, ids, manifest, notes)
    facts = {
        "manifest_sha256": manifest["sha256"],
        "moving_threshold": evaluate.moving_threshold,
    }
    text = false_sounds.manifest_text(manifest)
    return Controls(found, notes, facts, {"manifest.json": text})


def _make_manifest(config, records, ids, split: str) -> dict[str, Any]:
    """The manifest from config.evaluate.manifest, or built from the records."""
    if config.evaluate.manifest:
        return false_sounds.load_manifest(config.evaluate.manifest, ids)
    names = metadata(records).get("classes", ())
    facts = false_sounds.collect_facts(records, config.data.num_classes, names)
    return false_sounds.build_manifest(facts, config.data.dataset, split)


def _swapped_sounds(records, ids, notes: list[str]) -> dict[str, Sequence[Record]]:
    place = {clip: i for i, clip in enumerate(ids)}
    categories = {clip: decode_text(records[i]["category"]) for i, clip in enumerate(ids)}
    found = {}
    try:
        swapped = swap_audio(categories)
        pairs = [(place[clip], place[swapped[clip]]) for clip in ids if clip in swapped]
        found["swapped_audio"] = with_audio_of(records, pairs)
        if len(pairs) < len(ids):
            notes.append(
                f"swapped_audio: {len(pairs)} of {len(ids)} clips; the others share a category "
                "with every clip, or theirs is unknown"
            )
    except ValueError as error:
        notes.append(f"swapped_audio left out: {error}")
    if not len(records[0].get(VISIBLE_FIELD, ())):
        notes.append(f"audio_in_picture left out: the records leave {VISIBLE_FIELD} empty")
        return found
    # This reads every record again, but only for generated (small) datasets.
    labels = {clip: int(records[i]["category_label"]) for i, clip in enumerate(ids)}
    if not any(labels.values()):
        notes.append("audio_in_picture left out: the records give clips no single category")
        return found
    visible = {clip: np.asarray(records[i][VISIBLE_FIELD]).tolist() for i, clip in enumerate(ids)}
    heard = silent_audio(labels, visible)
    if heard:
        pairs = [(place[clip], place[heard[clip]]) for clip in ids if clip in heard]
        found["audio_in_picture"] = with_audio_of(records, pairs)
    if len(heard) < len(ids):
        notes.append(
            f"audio_in_picture: {len(heard)} of {len(ids)} clips show a silent object of a "
            "category that sounds elsewhere in the split"
        )
    return found


def _negative_sounds(config, records, ids, manifest, notes: list[str]):
    found = {}
    for condition in false_sounds.conditions(config.evaluate.audio):
        heard = false_sounds.with_false_sounds(records, ids, manifest, condition)
        if len(heard):
            found[condition] = heard
        if len(heard) < len(ids):
            notes.append(f"{condition}: {len(heard)} of {len(ids)} clips; {_LEFT_OUT[condition]}")
    return found


def _false_motion(config, rows, records, ids, manifest, notes: list[str]):
    controls = motion_controls(config.evaluate.motion)
    has_track = "track" in config.data and config.data.track.source != "none"
    if config.data.motion.source == "none" and not has_track and controls:
        notes.append(f"{', '.join(controls)} left out: the model reads no motion")
        return {}
    impossible = {}
    if len(ids) < 2:
        impossible["shuffled_flow"] = "there is one clip only"
    if not has_track:
        impossible["scrambled_track"] = "the model reads no motion track"
    for name, reason in impossible.items():
        if name in controls:
            notes.append(f"{name} left out: {reason}")
            controls.remove(name)
    return {
        name: with_false_motion(records, ids, manifest, name, rows.motion_maps) for name in controls
    }
