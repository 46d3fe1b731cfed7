"""False sounds in training: who gets them, what they are, and what the step then sees."""

import pickle

import numpy as np
import pytest

from avs_jax.controls import false_sounds, training_sounds
from avs_jax.data.audio import log_mel
from avs_jax.data.clip import ClipRows
from avs_jax.data.pipeline import TrainBatches
from avs_jax.spec import Field, InputError
from avs_jax.tasks import make_task
from configs import avss_vct, s4_ama
from tests import small
from tests.controls.test_negative_audio import record

COUNT = 12


def a_config(share=0.5, types="silence,noise,offscreen"):
    config = small.small_config()
    config.data.false_sounds.update(share=share, types=types)
    return config


def a_split(mask=None):
    """Clips that are heard but never decoded; each fifth has the same category."""
    masks = [np.ones((8, 8), np.uint8) if mask is None else mask]
    return [record(i, level=0.01 * (1 + i)) | {"masks": masks} for i in range(COUNT)]


def altered(alter, records, epoch=0, seed=3):
    return [alter(records, i, np.random.default_rng((seed, epoch, i))) for i in range(len(records))]


def test_the_share_and_the_types_are_those_asked_for():
    records = a_split()
    alter = training_sounds.false_training_sounds(a_config(share=0.25), records)
    counts = {"own": 0, "silence": 0, "noise": 0, "offscreen": 0}
    own = [false_sounds.own_sound(r) for r in records]
    for epoch in range(60):
        for i, clip in enumerate(altered(alter, records, epoch)):
            if not clip.get("sound_is_false"):
                assert clip is records[i]
                counts["own"] += 1
                continue
            assert not np.any(clip["masks"][0]) and clip["masks"][0].shape == (8, 8)
            sound, level = clip["waveform"], false_sounds.rms(clip["waveform"])
            if level < 1e-3 * false_sounds.rms(own[i]) or level < 2e-4:
                counts["silence"] += 1
                continue
            assert level == pytest.approx(false_sounds.rms(own[i]), rel=1e-6)
            close = [abs(np.corrcoef(sound, other)[0, 1]) > 0.99 for other in own]
            counts["offscreen" if any(close) else "noise"] += 1
            if any(close):
                groups = [
                    false_sounds.groups_of([records[j]["category"].decode()])
                    for j in (i, close.index(True))
                ]
                assert not groups[0] & groups[1]
    total = 60 * COUNT
    assert sum(counts.values()) == total
    assert 0.7 < counts["own"] / total < 0.8
    for name in ("silence", "noise", "offscreen"):
        assert 0.055 < counts[name] / total < 0.115, counts


def test_draws_depend_on_seed_epoch_and_record_alone():
    """Batches of 8 and of 4, a late start and a pickled loader see the same clips."""
    records, config = small.records(8), a_config()
    task = make_task(config)

    def batches(size, start=0):
        alter = pickle.loads(pickle.dumps(task.alter(records)))
        return TrainBatches(records, ClipRows(config), size, 7, start_step=start, alter=alter)

    whole, halves, late = batches(8), batches(4), batches(4, start=3)
    for epoch in (0, 1):
        parts = [halves[2 * epoch + i]["log_mel"] for i in range(2)]
        np.testing.assert_array_equal(whole[epoch]["log_mel"], np.concatenate(parts))
    np.testing.assert_array_equal(late[0]["log_mel"], halves[3]["log_mel"])


class Names:
    """Rows that say which clip they are, and whether its sound is false."""

    fields = {name: Field("str", "B", "metadata", "") for name in ("clip_id", "is_false")}

    def prepare(self, record, rng):
        return {"clip_id": record["clip_id"], "is_false": record.get("sound_is_false", False)}


def test_every_epoch_chooses_other_clips():
    records = small.records(8)
    alter = make_task(a_config()).alter(records)
    batches = TrainBatches(records, Names(), 8, 7, alter=alter)
    chosen = []
    for epoch in range(6):
        names = np.array(batches[epoch]["clip_id"])[np.array(batches[epoch]["is_false"])]
        chosen.append(tuple(sorted(names)))
    assert len(set(chosen)) > 3 and 0 < np.mean([len(names) for names in chosen]) < 8


def test_a_clip_with_a_false_sound_is_augmented_as_ever_and_has_no_object():
    """Only the sound and the targets change; the class of the sound is not taught."""
    records, config = small.records(4), a_config(share=1.0, types="silence")
    task = make_task(config)
    assert make_task(small.small_config()).alter(records) is None
    plain = TrainBatches(records, task.rows, 4, 7)[0]
    false = TrainBatches(records, task.rows, 4, 7, alter=task.alter(records))[0]
    for name in ("images", "pre_masks", "motion", "valid", "supervised", "frame_index"):
        np.testing.assert_array_equal(plain[name], false[name], err_msg=name)
    assert not np.array_equal(plain["log_mel"], false["log_mel"])
    assert plain["proto_valid"].any() and not false["proto_valid"].any()
    np.testing.assert_array_equal(false["target_valid"][:, 0], np.tile([True, False], (4, 1)))
    np.testing.assert_array_equal(false["target_labels"][:, 0, 0], 0)
    # Padding beyond the frame stays unknown; everything else is background.
    known = plain["target_masks"].any(axis=2)
    np.testing.assert_array_equal(false["target_masks"][:, :, 0], known)


def test_semantic_masks_become_background_and_unknown_pixels_stay_unknown():
    mask = np.array([[0, 5], [255, 7]], np.uint8)
    config = avss_vct.get_config("tiny")
    config.data.false_sounds.update(share=1.0, types="noise")
    alter = training_sounds.false_training_sounds(config, a_split(mask))
    (empty,) = alter(a_split(mask), 0, np.random.default_rng(0))["masks"]
    np.testing.assert_array_equal(empty, [[0, 0], [255, 0]])


def test_noise_reaches_the_model_at_the_level_of_the_clip():
    records = a_split()
    alter = training_sounds.false_training_sounds(a_config(1.0, "noise"), records)
    clip = alter(records, 3, np.random.default_rng(1))
    mels = [log_mel(c["waveform"], int(c["sample_rate"]), 5) for c in (clip, records[3])]
    assert mels[0].shape == mels[1].shape and np.abs(mels[0] - mels[1]).mean() > 0.5


@pytest.mark.parametrize(
    "change, message",
    [
        ({"share": 1.5}, "false_sounds.share = 1.5: expected a share, 0..1"),
        ({"share": "half"}, "false_sounds.share = 'half': expected a share"),
        ({"types": "shift,noise"}, "false_sounds.types = 'shift,noise': expected any of silence"),
        ({"types": ""}, "false_sounds.types = '': expected any of silence"),
        ({"types": "music"}, "'music' of 'music' does not exist"),
    ],
)
def test_bad_values_are_named(change, message):
    config = s4_ama.get_config("tiny")
    with config.data.false_sounds.unlocked(), config.data.false_sounds.ignore_type():
        config.data.false_sounds.update(change)
    with pytest.raises(InputError, match=message):
        make_task(config)


def test_a_split_of_one_group_has_nothing_off_screen():
    records = [r | {"category": b"dog_barking"} for r in a_split()]
    with pytest.raises(InputError, match="no training clip has an off-screen sound"):
        training_sounds.false_training_sounds(a_config(types="offscreen"), records)
