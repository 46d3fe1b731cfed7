"""False sounds, which show whether a model segments sounding objects or just salient ones.

Conditions, by type; each clip keeps its frames and ground truth:

  silence    silence_zeros   digital silence
             silence_dither  triangular noise at -80 dBFS
  noise      noise_white     Gaussian, flat
             noise_pink      Gaussian, power ~ 1 / f (-3 dB per octave)
  offscreen  offscreen       the sound of a clip of another semantic group of the same split
  shift      shift           the clip's own sound, shifted: frame t hears second (t + k) mod T
  late       late            the clip's own sound, half a second late; its end comes first

All are mono waveforms at 16 kHz and go through the log-mel of data/audio.py like any sound. Noise
and off-screen sound get the level (RMS over the clip, at 16 kHz) of the clip's own sound, so that
loudness reveals nothing. 0 dBFS is an RMS of 1. Nothing is clipped: the front end takes any
amplitude. `late` is for models with synchrony: the same object sounds, but no longer moves with its
sound.

A frozen manifest says what each clip gets. It depends only on the sorted clip ids and their
categories and lengths: see `build_manifest`.

Source: the negative audio of AVSBench-Robust (arXiv 2502.00358: silence, noise, off-screen sound).
Departures: two kinds of silence and of noise, `shift` and `late`, matched levels, and a manifest.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from avs_jax.controls.altered import Altered
from avs_jax.controls.pairing import least_used
from avs_jax.data.audio import EXAMPLE_SAMPLES, HOP, resample, to_mono
from avs_jax.data.avsbench_folders import S4_CATEGORIES
from avs_jax.data.decode import decode_labels, decode_text
from avs_jax.data.input_files import read_json
from avs_jax.spec import IGNORE_LABEL, MEL_FRAMES, NEGATIVE_AUDIO, SAMPLE_RATE, InputError, nearest

DITHER_DBFS = -80.0
LATE_SAMPLES = SAMPLE_RATE // 2
EXAMPLE_HOP = MEL_FRAMES * HOP  # samples from one log-mel example to the next
VERSION = 1  # of the manifest
ENTRY_FIELDS = ("groups", "noise_seed", "offscreen", "shift", "motion")
# Condition -> the field without which a clip has no such sound.
NEEDED_ENTRIES = {"offscreen": "offscreen", "shift": "shift", "late": "shift"}

# Groups of similar sounds: the 23 categories of S4 (and of MS3, where categories are known), and
# the 70 classes of AVSBench-semantic.
GROUPS = {
    "voice": (
        "baby_laughter male_speech female_singing "
        "baby man woman"
    ),
    "animal": (
        "mynah_bird_singing lions_roaring cat_meowing dog_barking horse_clip-clop coyote_howling "
        "bird cat cow dog duck elephant frog goat hen horse leopard lion parrot pig sheep "
        "squirrel tiger wolf"
    ),
    "instrument": (
        "playing_violin playing_glockenspiel playing_piano playing_ukulele playing_tabla "
        "playing_acoustic_guitar "
        "accordion bagpipe banjo bassoon bell cello clarinet drum erhu flute guitar guzheng "
        "harmonica harp marimba piano pipa saxophone sitar tabla trombone trumpet tuba ukulele "
        "violin whistle"
    ),
    "engine": (
        "helicopter lawn_mowing driving_buses chainsawing_trees ambulance_siren race_car "
        "airplane boat bus car emergency-car hair-dryer motorcycle mower rocket saw tank "
        "tractor train truck vacuum-cleaner"
    ),
    "tool": (
        "typing_on_computer_keyboard cap_gun_shooting "
        "axe bicycle clock gun hammer keyboard sewing-machine"
    ),
}  # fmt: skip
_GROUP_OF = {name: group for group, names in GROUPS.items() for name in names.split()}


@dataclasses.dataclass(frozen=True)
class ClipFacts:
    """The facts of a clip that its manifest entry depends on.

    Attributes:
      clip_id: unique in the split.
      names: sounding categories or classes; () if unknown.
      visible: categories in the frames, if known; their sound is not off-screen.
      seconds: number of log-mel examples that its frames hear.
    """

    clip_id: str
    names: tuple[str, ...]
    visible: frozenset[str]
    seconds: int


def groups_of(names: Iterable[str]) -> frozenset[str]:
    """Semantic groups of categories or classes; a name not in GROUPS is its own group."""
    return frozenset(_GROUP_OF.get(name, name) for name in names)


def conditions(types: str) -> list[str]:
    """Conditions of a comma-separated list of types, in the order of NEGATIVE_AUDIO."""
    asked = [word.strip() for word in types.split(",") if word.strip()]
    for word in asked:
        if word not in NEGATIVE_AUDIO:
            near = ", ".join(nearest(word, list(NEGATIVE_AUDIO))) or ", ".join(NEGATIVE_AUDIO)
            raise InputError(
                f"false sound {word!r} of {types!r} does not exist; choose from "
                f"{', '.join(NEGATIVE_AUDIO)} (nearest: {near})"
            )
    if len(set(asked)) < len(asked):
        raise InputError(f"false sounds {types!r} name a type twice")
    return [
        condition for kind in NEGATIVE_AUDIO if kind in asked for condition in NEGATIVE_AUDIO[kind]
    ]


# ---- the manifest ----


def collect_facts(
    records: Sequence[Mapping[str, Any]], num_classes: int = 2, class_names: Sequence[str] = ()
) -> list[ClipFacts]:
    """Reads every record of a split once, in order.

    Args:
      records: see data/clip.py.
      num_classes: with 2, the sounding names are the record's category, split at "+". With more,
        they are the classes of its decoded masks.
      class_names: background first; missing ones become "class 7".
    """
    # the builders' numbering of `visible_labels`
    names = dict(enumerate(class_names if num_classes > 2 else ("", *S4_CATEGORIES)))
    facts = []
    for i in range(len(records)):
        record = records[i]
        clip, category = decode_text(record["clip_id"]), decode_text(record.get("category", ""))
        seconds = min(num_seconds(record), len(record["frames"]))
        heard = [name for name in category.split("+") if name]
        if num_classes > 2:
            heard = _classes_in(record["masks"], num_classes, class_names)
        shown = map(int, record.get("visible_labels", ()))
        visible = frozenset(names.get(label, f"class {label}") for label in shown)
        facts.append(ClipFacts(clip, tuple(sorted(heard)), visible, seconds))
    return facts


def _classes_in(masks: Iterable[Any], num_classes: int, names: Sequence[str]) -> list[str]:
    found = {int(c) for mask in masks for c in np.unique(decode_labels(mask, num_classes))}
    return [str(names[c]) if c < len(names) else f"class {c}" for c in found - {0, IGNORE_LABEL}]


def build_manifest(facts: Sequence[ClipFacts], dataset: str, split: str) -> dict[str, Any]:
    """The frozen pairing of a split, independent of the order of the clips.

    A clip's entry holds, where None means that there is none:
      groups: its semantic groups.
      noise_seed: from its id.
      offscreen: the clip whose sound it gets, from another group and not of a category in its
        frames (if known). Sounds are used as evenly as possible.
      shift: seconds, 1 to its length - 1.
      motion: the clip whose motion it gets.

    Returns:
      {"version", "dataset", "split", "clips": {id: entry}, "sha256"}.
    """
    facts = sorted(facts, key=lambda clip: clip.clip_id)
    ids = [clip.clip_id for clip in facts]
    if len(set(ids)) < len(ids):
        raise ValueError("a clip id occurs twice")
    offscreen = _pair_offscreen(facts)
    entries = {}
    for i, clip in enumerate(facts):
        seed = int.from_bytes(hashlib.sha256(clip.clip_id.encode()).digest()[:6], "big")
        entries[clip.clip_id] = {
            "groups": sorted(groups_of(clip.names)),
            "noise_seed": seed,
            "offscreen": offscreen[i],
            "shift": 1 + seed % (clip.seconds - 1) if clip.seconds > 1 else None,
            "motion": ids[(i + len(ids) // 2) % len(ids)] if len(ids) > 1 else None,
        }
    manifest = {"version": VERSION, "dataset": dataset, "split": split, "clips": entries}
    return manifest | {"sha256": manifest_digest(manifest)}


class OffscreenPartners:
    """Which clips sound like nothing in a clip's frames."""

    def __init__(self, facts: Sequence[ClipFacts]):
        groups = [groups_of(clip.names) for clip in facts]
        bit = {name: 1 << i for i, name in enumerate(sorted(frozenset().union(*groups)))}
        self._facts = facts
        self._codes = np.array([sum(bit[name] for name in group) for group in groups], object)

    def fits(self, place: int) -> list[int]:
        """The clips of other semantic groups whose category is not in the frames of clip `place`.

        A clip with unknown sounds neither has partners nor is one.
        """
        codes, visible = self._codes, self._facts[place].visible
        fits = (codes != 0) & ((codes & codes[place]) == 0) & (codes[place] != 0)
        return [int(j) for j in np.flatnonzero(fits) if not visible & set(self._facts[j].names)]


def _pair_offscreen(facts: Sequence[ClipFacts]) -> list[str | None]:
    """For each clip the least used partner that fits, starting half a split away."""
    offscreen = OffscreenPartners(facts)
    partners = least_used([offscreen.fits(i) for i in range(len(facts))])
    return [None if partner is None else facts[partner].clip_id for partner in partners]


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest without its "sha256", as canonical JSON."""
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def manifest_text(manifest: Mapping[str, Any]) -> str:
    """The JSON file that `load_manifest` reads."""
    return json.dumps(manifest, indent=1, sort_keys=True) + "\n"


def load_manifest(path: str | pathlib.Path, ids: Iterable[str]) -> dict[str, Any]:
    """Reads a manifest and checks that it is intact and covers exactly these clips.

    Raises:
      InputError: missing, or not a manifest of this version; its hash does not match; its clips
        are not `ids`, or it pairs a clip with one outside of them.
    """
    path, ids = pathlib.Path(path).expanduser(), set(ids)
    manifest = read_json(path)
    if not isinstance(manifest.get("clips"), dict):
        raise InputError(f"{path}: not a manifest of false sounds, lacks `clips`")
    if manifest.get("version") != VERSION:
        raise InputError(f"{path}: version {manifest.get('version')!r}, expected {VERSION}")
    found, stated = manifest_digest(manifest), manifest.get("sha256")
    if found != stated:
        raise InputError(f"{path}: sha256 of its contents is {found}, but it says {stated}")
    clips = manifest["clips"]
    missing, extra = sorted(ids - clips.keys()), sorted(clips.keys() - ids)
    if missing or extra:
        raise InputError(
            f"{path}: made for other clips: {len(missing)} of this split are missing "
            f"{missing[:3]}, {len(extra)} are not in it {extra[:3]}"
        )
    for clip, entry in clips.items():
        _check_entry(entry, ids, f"{path}: clip {clip}")
    return manifest


def _check_entry(entry: Any, ids: set[str], where: str) -> None:
    if not isinstance(entry, dict) or set(entry) != set(ENTRY_FIELDS):
        raise InputError(f"{where}: expected the fields {', '.join(ENTRY_FIELDS)}")
    for field in ("offscreen", "motion"):
        value = entry[field]
        if value is not None and not (isinstance(value, str) and value in ids):
            raise InputError(f"{where}: {field} is {value!r}, which is not a clip of the split")
    for field, optional in (("noise_seed", False), ("shift", True)):
        value = entry[field]
        if not (type(value) is int and value >= 0 or optional and value is None):
            raise InputError(f"{where}: {field} is {value!r}, expected an integer from 0")


# ---- waveforms: mono, float64 [n] at 16 kHz ----


def own_sound(record: Mapping[str, Any]) -> np.ndarray:
    """The sound of a record as the front end gets it, float64 [n] at 16 kHz."""
    return resample(to_mono(record["waveform"]), int(record["sample_rate"]))


def num_seconds(record: Mapping[str, Any]) -> int:
    """The number of log-mel examples in the sound of a record."""
    count = len(record["waveform"]) * SAMPLE_RATE // int(record["sample_rate"])
    return max(0, (count - EXAMPLE_SAMPLES) // EXAMPLE_HOP + 1)


def rms(samples: np.ndarray) -> float:
    """Root mean square; 1 is 0 dBFS."""
    return float(np.sqrt(np.mean(np.square(samples)))) if len(samples) else 0.0


def match_level(samples: np.ndarray, level: float) -> np.ndarray:
    """Scales samples to an RMS of `level`; silence stays silent."""
    own = rms(samples)
    return samples * (level / own) if own else samples


def dither(count: int, rng: np.random.Generator) -> np.ndarray:
    return match_level(rng.triangular(-1.0, 0.0, 1.0, count), 10 ** (DITHER_DBFS / 20))


def white_noise(count: int, rng: np.random.Generator) -> np.ndarray:
    return match_level(rng.standard_normal(count), 1.0)


def pink_noise(count: int, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise of unit RMS without DC; power falls by 3 dB per octave."""
    spectrum = np.fft.rfft(rng.standard_normal(count))
    bins = np.arange(len(spectrum))
    spectrum[1:] /= np.sqrt(bins[1:])
    spectrum[0] = 0.0
    return match_level(np.fft.irfft(spectrum, count), 1.0)


def shift_seconds(samples: np.ndarray, seconds: int, total: int) -> np.ndarray:
    """A sound whose log-mel example t is example (t + seconds) mod total of the input.

    Examples differ only in the last 15 ms (two STFT windows) at the seam and at the end, where they
    reach into the next example.
    """
    span = total * EXAMPLE_HOP
    return np.concatenate([np.roll(samples[:span], -seconds * EXAMPLE_HOP), samples[span:]])


def delay(samples: np.ndarray, total: int) -> np.ndarray:
    """A sound that comes LATE_SAMPLES later; the end of its `total` examples comes first."""
    span = total * EXAMPLE_HOP
    return np.concatenate([np.roll(samples[:span], LATE_SAMPLES), samples[span:]])


def false_sound(
    condition: str,
    record: Mapping[str, Any],
    entry: Mapping[str, Any],
    partner: Mapping[str, Any] | None = None,
) -> np.ndarray:
    """A clip's sound under a condition, float64 [n] at 16 kHz, as long as its own sound.

    `entry` is the clip's in the manifest. The partner's off-screen sound is repeated or cut.
    """
    own = own_sound(record)
    rng, count = np.random.default_rng(entry["noise_seed"]), len(own)
    if condition == "silence_zeros":
        return np.zeros(count)
    if condition == "silence_dither":
        return dither(count, rng)
    if condition == "noise_white":
        return match_level(white_noise(count, rng), rms(own))
    if condition == "noise_pink":
        return match_level(pink_noise(count, rng), rms(own))
    if condition == "offscreen":
        return match_level(np.resize(own_sound(partner), count), rms(own))
    total = min(num_seconds(record), len(record["frames"]))
    if condition == "shift":
        return shift_seconds(own, entry["shift"], total)
    if condition == "late":
        return delay(own, total)
    every = [name for names in NEGATIVE_AUDIO.values() for name in names]
    raise ValueError(f"condition {condition!r}, expected one of {every}")


def with_false_sounds(
    records: Sequence[Mapping[str, Any]],
    ids: Sequence[str],
    manifest: Mapping[str, Any],
    condition: str,
) -> Altered:
    """The records of a split under one condition, without clips that have no such sound."""
    clips, place = manifest["clips"], {clip: i for i, clip in enumerate(ids)}
    needed = NEEDED_ENTRIES.get(condition)
    kept = [clip for clip in ids if needed is None or clips[clip][needed] is not None]

    def replace(record: Mapping[str, Any], item: int) -> dict[str, Any]:
        entry = clips[kept[item]]
        partner = records[place[entry["offscreen"]]] if condition == "offscreen" else None
        sound = false_sound(condition, record, entry, partner)
        return {"waveform": sound, "sample_rate": SAMPLE_RATE}

    return Altered(records, [place[clip] for clip in kept], replace)
