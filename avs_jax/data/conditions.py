"""The conditions of an evaluation: the same pictures and ground truth with another sound or motion.

swapped_audio     each clip with the sound of a clip of another category
audio_in_picture  each clip with the sound of a category that its picture shows, silent; only
                  where the records name the objects in them (generated clips do)
config.evaluate.audio: any of silence, noise, offscreen and shift (negative_audio.py); where the
                  model reads motion also false motion, config.evaluate.motion
                  (negative_motion.py)
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from avs_jax.data import negative_audio
from avs_jax.data.clip import Record
from avs_jax.data.negative_motion import FalseMotion, motion_controls
from avs_jax.data.records import metadata
from avs_jax.data.sounds import Resounded, silent_audio, swap_audio
from avs_jax.spec import InputError

VISIBLE_FIELD = "visible_labels"  # of a record: categories in the picture, where known
_LEFT_OUT = {
    "offscreen": "the others have no clip of another semantic group, or the records do not say "
    "what sounds in them",
    "shift": "the others are shorter than two seconds",
}


def find_conditions(
    config: Any,
    records: Sequence[Record],
    categories: Mapping[str, str],
    manifest: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Sequence[Record]], list[str]]:
    """The conditions beside the true sound.

    Args:
      config: the whole configuration; reads evaluate.swapped_audio, audio and motion.
      records: of the split.
      categories: clip id -> category, in the records' order.
      manifest: of the negative audio, where there is to be any.

    Returns:
      condition -> records; and a sentence on each condition that is left out or covers some of the
      clips only.
    """
    found: dict[str, Sequence[Record]] = {}
    notes: list[str] = []
    if config.evaluate.swapped_audio:
        found |= _swapped_sounds(records, categories, notes)
    if manifest is not None:
        found |= _negative_sounds(config, records, list(categories), manifest, notes)
        found |= _false_motion(config, records, list(categories), manifest, notes)
    return found, notes


def pairing_manifest(config: Any, records: Sequence[Record]) -> dict[str, Any] | None:
    """The manifest of the negative audio, or None where config.evaluate.audio asks for none.

    It is the file config.evaluate.manifest, or follows from the records, each of which is read
    once.

    Raises:
      ValueError: config.evaluate.audio or .motion names what does not exist; the file is no intact
        manifest of these clips, or there is nothing to use it for.
    """
    if not config.evaluate.audio:
        if config.evaluate.manifest:
            raise InputError(
                f"config.evaluate.manifest is {config.evaluate.manifest!r}, but "
                "config.evaluate.audio names nothing to use it for"
            )
        return None
    negative_audio.conditions(config.evaluate.audio)
    motion_controls(config.evaluate.motion)
    names = metadata(records).get("classes", ())
    facts = negative_audio.collect_facts(records, config.data.num_classes, names)
    if config.evaluate.manifest:
        ids = [clip.clip_id for clip in facts]
        return negative_audio.load_manifest(config.evaluate.manifest, ids)
    return negative_audio.build_manifest(facts, config.data.dataset, config.evaluate.split)


def _swapped_sounds(records, categories, notes: list[str]) -> dict[str, Sequence[Record]]:
    ids = list(categories)
    place = {clip: i for i, clip in enumerate(ids)}
    found = {}
    try:
        swapped = swap_audio(categories)
        pairs = [(i, place[swapped[clip]]) for i, clip in enumerate(ids)]
        found["swapped_audio"] = Resounded(records, pairs)
    except ValueError as error:
        notes.append(f"swapped_audio left out: {error}")
    if not len(records[0].get(VISIBLE_FIELD, ())):
        notes.append(f"audio_in_picture left out: the records leave {VISIBLE_FIELD} empty")
        return found
    # Reads every record once more, which only generated (small) datasets ask for.
    labels = {clip: int(records[i]["category_label"]) for i, clip in enumerate(ids)}
    visible = {clip: np.asarray(records[i][VISIBLE_FIELD]).tolist() for i, clip in enumerate(ids)}
    heard = silent_audio(labels, visible)
    if heard:
        pairs = [(place[clip], place[heard[clip]]) for clip in ids if clip in heard]
        found["audio_in_picture"] = Resounded(records, pairs)
    if len(heard) < len(ids):
        notes.append(
            f"audio_in_picture: {len(heard)} of {len(ids)} clips show a silent object of a "
            "category that sounds elsewhere in the split"
        )
    return found


def _negative_sounds(config, records, ids, manifest, notes: list[str]):
    found = {}
    for condition in negative_audio.conditions(config.evaluate.audio):
        heard = negative_audio.FalseSounds(records, ids, manifest, condition)
        if len(heard):
            found[condition] = heard
        if len(heard) < len(ids):
            notes.append(f"{condition}: {len(heard)} of {len(ids)} clips; {_LEFT_OUT[condition]}")
    return found


def _false_motion(config, records, ids, manifest, notes: list[str]):
    controls = motion_controls(config.evaluate.motion)
    if config.data.motion.source == "none" and controls:
        notes.append(f"{', '.join(controls)} left out: the model reads no motion")
        return {}
    if len(ids) < 2 and "shuffled_flow" in controls:
        notes.append("shuffled_flow left out: there is one clip only")
        controls.remove("shuffled_flow")
    return {name: FalseMotion(records, ids, manifest, name) for name in controls}
