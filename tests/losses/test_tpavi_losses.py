"""The loss of the baselines: the originals' numbers with every flag, and what is mended."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from avs_jax.losses.tpavi import compute_losses, loss_norms, nearest
from avs_jax.spec import InputError
from tests.tpavi_golden import golden

TOLERANCE = 5e-5  # of the largest value of a gradient
NUM_CLASSES = {"s4": 2, "ms3": 2, "avss": 7}
CASES = {
    case: info
    for file in ("binary", "classes")
    for case, info in golden(f"losses_{file}")[1].items()
}
MENDED = [case for case in CASES if "avss" in case and "closer_kl" in case]
PLAIN = [case for case in CASES if case not in MENDED and "raises" not in CASES[case]]


def av_config(**changes):
    """config.loss with the keys of MS3's recipe, changed."""
    keys = {
        "kind": "masked",
        "weight": 0.5,
        "stages": (0, 1, 2, 3),
        "distance": "kl",
        "mask_pooling": "avg",
        "normalize": False,
        "threshold": False,
        "reduction": "sum",
        "frames": "supervised",
    }
    return ConfigDict({"av": keys | changes})


def config_of(case):
    """config.loss of a golden case: the flags of the original's entry point, translated."""
    setting, name = case.split("/")
    flags, kind = CASES[case]["flags"], "none"
    if flags["sa_loss_flag"]:
        kind = "neighbor" if flags.get("closer_flag") else "masked"
        kind = "cosine" if setting == "s4" else kind
    return av_config(
        kind=kind,
        weight=flags["lambda_1"],
        stages=tuple(flags.get("count_stages", (0, 1, 2, 3))),
        distance="euclidean" if flags.get("euclidean_flag") else "kl",
        mask_pooling=flags.get("mask_pooling_type", "avg"),
        normalize=flags.get("norm_fea", name == "both_flags"),  # its default
        threshold=flags.get("threshold", False),
        reduction="sum" if setting == "ms3" else "mean",
        frames="valid" if setting == "s4" else "supervised",
    )


def clips(x):
    """[N, ...] -> [B, 5, ...]."""
    return x.reshape(-1, 5, *x.shape[1:])


def arrays_of(case):
    setting = case.split("/")[0]
    return golden("losses_classes" if setting.startswith("avss") else "losses_binary")[0]


@functools.cache
def inputs(setting):
    """(pred_masks, feature maps, audio features) and the targets of a setting."""
    stem, arrays = setting.split("_")[0], arrays_of(setting)
    pred, *maps = (
        clips(np.moveaxis(arrays[f"{stem}/in/{name}"], 1, -1))
        for name in ("pred", "v0", "v1", "v2", "v3")
    )
    audio = {stage: arrays[f"{stem}/in/a{stage}"] for stage in range(4)}
    shape = pred.shape[:2]
    supervised, classes = np.ones(shape, bool), np.arange(NUM_CLASSES[stem])
    if stem == "s4":
        supervised[:, 1:] = False
        labels = np.zeros((*shape, 32, 32), np.uint8)
        labels[:, 0] = arrays["s4/in/gt_first"][:, 0, 0]
    else:
        labels = clips(arrays[f"{stem}/in/gt"].reshape(-1, 32, 32))
    if stem == "avss":
        flag = "gt_temporal_mask_flag" + "_v1s" * (setting == "avss_v1s")
        supervised = clips(arrays[f"avss/in/{flag}"]) > 0
    batch = {
        "target_masks": labels[:, :, None] == classes[:, None, None],
        "target_labels": np.broadcast_to(classes, (*shape, len(classes))),
        "target_valid": np.ones((*shape, len(classes)), bool),
        "supervised": supervised,
        "valid": np.ones(shape, bool),
    }
    return (pred, maps, audio), batch


def prediction_of(case, pred):
    """The logits of a case; three have constants in place of the stored ones."""
    name = case.split("/")[1]
    constant = -20.0 if name == "empty_pred" else None
    if name.startswith("saturated_pred"):
        constant = float(name.removeprefix("saturated_pred"))
    return pred if constant is None else np.full_like(pred, constant)


def losses(pred, maps, audio, batch, config):
    seen = {"feature_maps": maps, "audio_features": audio}
    outputs = {"pred_masks": pred, "intermediates": seen}
    return compute_losses(outputs, batch, None, loss_config=config)


@pytest.mark.parametrize("case", PLAIN)
def test_terms_and_gradients_agree_with_the_originals(case):
    (pred, maps, audio), batch = inputs(case.split("/")[0])
    info, config, arrays = CASES[case], config_of(case), arrays_of(case)
    pred = prediction_of(case, pred)
    stages = config.av.stages if config.av.kind != "none" else ()
    grad = jax.value_and_grad(losses, argnums=(0, 1, 2), has_aux=True)
    (total, terms), grads = grad(pred, maps, audio, batch, config)
    np.testing.assert_allclose(total, info["total"], rtol=1e-5)
    np.testing.assert_allclose(terms["loss_seg"], info["iou_loss"], rtol=1e-5)
    np.testing.assert_allclose(terms.get("loss_av", 0.0), 0.5 * info["sa_loss"], rtol=1e-5)
    checked = {"grad_pred": grads[0]}
    for stage in stages:
        checked |= {f"grad_v{stage}": grads[1][stage], f"grad_a{stage}": grads[2][stage]}
    for name, value in checked.items():
        expected = arrays.get(f"{case}/{name}")
        if expected is None:
            expected = arrays.get(f"{case}/{name}/probe_val")
            value = np.moveaxis(np.asarray(value).reshape(-1, *value.shape[2:]), -1, 1)
            value = (
                None if expected is None else value.reshape(-1)[arrays[f"{case}/{name}/probe_idx"]]
            )
        if expected is not None:
            scale = max(np.abs(expected).max(), np.abs(value).max())
            np.testing.assert_allclose(value, expected, atol=TOLERANCE * scale, err_msg=name)


def test_neighbors_are_those_of_the_original():
    for setting in ("ms3", "avss"):
        _, audio = inputs(setting)[0][1:]
        for stage in range(4):
            expected = arrays_of(setting)[f"{setting}/closest_idx_norm0_stage{stage}"]
            flat = audio[stage].reshape(len(expected), -1)
            found, exists = nearest(flat, jnp.ones(len(flat), bool))
            np.testing.assert_array_equal(found, expected)
            assert exists.all()


@pytest.mark.parametrize("case", MENDED)
def test_original_neighbor_of_many_classes_was_the_frame_itself(case):
    """Its KL compared with the frame's own audio; here it compares with the neighbor."""
    twin = case.replace("closer", "masked").replace("thr1", "thr0")
    assert CASES[case]["sa_loss"] == CASES[twin]["sa_loss"]
    (pred, maps, audio), batch = inputs(case.split("/")[0])
    found = losses(pred, maps, audio, batch, config_of(case))[1]["loss_av"]
    own = losses(pred, maps, audio, batch, config_of(twin))[1]["loss_av"]
    np.testing.assert_allclose(own, 0.5 * CASES[case]["sa_loss"], rtol=1e-5)
    assert abs(found - own) > 0.05 * own


def test_neighbor_is_another_valid_frame_however_far():
    audio = jnp.asarray([[0.0, 0], [100, 0], [150, 0], [101, 0]])
    found, exists = nearest(audio, jnp.asarray([True, True, True, False]))
    np.testing.assert_array_equal(found, [1, 2, 1, 1])
    assert exists.all()
    assert not nearest(audio, jnp.asarray([True, False, False, False]))[1][0]


def test_wrong_logits_keep_their_gradient():
    """In the original, whose sigmoid is 1 beyond 17, they cost 100 and have none."""
    (_, maps, audio), batch = inputs("s4")
    batch = batch | {"target_masks": batch["target_masks"] & (np.arange(2) == 0)[:, None, None]}
    config = av_config(kind="none")

    def loss(logit):
        return losses(jnp.full((2, 5, 32, 32, 1), logit), maps, audio, batch, config)[0]

    value, gradient = jax.value_and_grad(loss)(30.0)
    np.testing.assert_allclose(value, 30.0, rtol=1e-5)
    np.testing.assert_allclose(gradient, 1.0, rtol=1e-5)


@pytest.mark.parametrize("setting", ["s4", "ms3", "avss"])
def test_micro_batches_add_up(setting):
    (pred, maps, audio), batch = inputs(setting)
    for changes in ({}, {"reduction": "mean"}, {"kind": "cosine", "frames": "valid"}):
        config = av_config(**changes)
        norms = loss_norms(batch, config)
        whole = losses(pred, maps, audio, batch, config)[1]
        parts = []
        for row in range(len(pred)):
            part = jax.tree.map(lambda x, row=row: x[row : row + 1], (pred, maps, audio, batch))
            seen = {"feature_maps": part[1], "audio_features": part[2]}
            outputs = {"pred_masks": part[0], "intermediates": seen}
            parts.append(compute_losses(outputs, part[3], None, norms, loss_config=config)[1])
        for name, value in whole.items():
            np.testing.assert_allclose(sum(p[name] for p in parts), value, rtol=2e-5, err_msg=name)


def test_frames_that_are_compared_with_each_other_cannot_be_cut():
    (pred, maps, audio), batch = inputs("s4")
    config = av_config(kind="neighbor")
    seen = {"feature_maps": maps, "audio_features": audio}
    outputs = {"pred_masks": pred, "intermediates": seen}
    with pytest.raises(InputError, match="config.train.accumulate must be 1"):
        compute_losses(outputs, batch, None, loss_norms(batch, config), loss_config=config)


def test_only_supervised_frames_and_labeled_pixels_count():
    (pred, maps, audio), batch = inputs("avss_v1s")
    config = av_config(reduction="mean")
    total = losses(pred, maps, audio, batch, config)[0]
    unseen = ~batch["supervised"]
    other = jax.tree.map(np.copy, (pred, maps))
    other[0][unseen] = 3.0
    for x in other[1]:
        x[unseen] = 5.0
    np.testing.assert_array_equal(losses(*other, audio, batch, config)[0], total)
    labeled = np.ones((32, 32), bool)
    labeled[20:] = False
    config = av_config(kind="none")
    cropped = batch | {"target_masks": batch["target_masks"] & labeled}
    smaller = batch | {"target_masks": batch["target_masks"][..., :20, :]}
    np.testing.assert_allclose(
        losses(pred, maps, audio, cropped, config)[0],
        losses(pred, maps, audio, smaller, config)[0],
        rtol=1e-6,
    )


@pytest.mark.parametrize(
    "changes", [{"kind": "cosine"}, {"normalize": True}, {"threshold": True, "normalize": True}]
)
def test_empty_masks_have_finite_gradients(changes):
    (pred, maps, audio), batch = inputs("s4")
    pred, maps = np.full_like(pred, -200.0), [0 * x for x in maps]

    def loss(*args):
        return losses(*args, batch, av_config(**changes))[0]

    grads = jax.grad(loss, (0, 1, 2))(pred, maps, audio)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "closer"}, "loss.av.kind = 'closer': choose one of"),
        ({"distance": "l1"}, "loss.av.distance = 'l1'"),
        ({"mask_pooling": "mean"}, "loss.av.mask_pooling = 'mean'"),
        ({"stages": ()}, r"loss.av.stages = \(\): choose some of \[0, 1, 2, 3\]"),
        ({"stages": (4,)}, r"loss.av.stages = \(4,\)"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    (pred, maps, audio), batch = inputs("ms3")
    with pytest.raises(InputError, match=message):
        losses(pred, maps, audio, batch, av_config(**changes))
