"""The loss against stored runs of the original criteria, and how it treats frames.

The original leaves out frames without ground truth, pads nothing and draws its points in call
order; `golden_problem` and tests/golden/draws.py bring its runs into the layout of spec.py.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from ml_collections import FrozenConfigDict

from avs_jax.losses.criterion import (
    PointSamples,
    compute_losses,
    criterion,
    sample_points,
    uncertain_points,
)
from avs_jax.losses.matcher import match, matching_cost
from configs.segment import segment_config
from tests.golden.draws import golden_assignment, golden_draws

GT_SIZE = (64, 80)
NUM_LAYERS = 3
NUM_FRAMES = 5  # T of every stored run
CASES = [(task, run) for task in ("s4", "ms3", "ss") for run in ("mixed", "allempty")]


@pytest.fixture
def loss_config():
    """The published weights with the few points of the stored runs."""
    config = segment_config().loss
    config.num_points = 48
    return FrozenConfigDict(config)


@functools.cache
def archive(golden_dir):
    with np.load(golden_dir / "golden_losses.npz") as file:
        arrays = {name: file[name] for name in file.files}
    return arrays, json.loads((golden_dir / "golden_losses_manifest.json").read_text())


def golden_problem(arrays, task, run):
    """(outputs, targets, draws [L, ...], frames that have a target image) of one stored run.

    Predictions are stored in the order of the decoder, the last one last.
    """
    given = {k.removeprefix(f"{task}/in/"): v for k, v in arrays.items() if f"{task}/in/" in k}
    num_frames = len(given["logits_0"])
    shape = (num_frames // NUM_FRAMES, NUM_FRAMES)

    def unfold(x):
        return jnp.asarray(x).reshape(*shape, *x.shape[1:])

    supervised = np.ones(num_frames, bool)
    if task == "s4":
        supervised = np.arange(num_frames) % NUM_FRAMES == 0
    elif task == "ss":
        supervised = given["gt_temporal_mask_flag"] == 1
    target_frames = np.flatnonzero(supervised)

    labels = [given[f"target_labels_{i:02d}"] for i in range(len(target_frames))]
    num_targets = max(map(len, labels))
    target_masks = np.zeros((num_frames, num_targets, *GT_SIZE), bool)
    target_labels = np.zeros((num_frames, num_targets), np.int32)
    target_valid = np.zeros((num_frames, num_targets), bool)
    num_prototypes = given["proto_embed"].shape[1] if "proto_embed" in given else 0
    proto_target = np.zeros((num_frames, num_prototypes), np.float32)
    for i, frame in enumerate(target_frames):
        count = 0 if run == "allempty" else len(labels[i])
        bits = np.unpackbits(given[f"target_masks_{i:02d}"], axis=-1).astype(bool)
        target_masks[frame, :count] = bits.reshape(-1, *GT_SIZE)[:count]
        target_labels[frame, :count] = labels[i][:count]
        target_valid[frame, :count] = True
        if task == "s4":
            proto_target[frame, given["category_labels"][i] - 1] = 1
        elif task == "ss":
            proto_target[frame, labels[i][:count]] = 1

    layers = [
        {
            "pred_logits": unfold(given[f"logits_{layer}"]),
            "pred_masks": unfold(given[f"masks_{layer}"].transpose(0, 2, 3, 1)),
        }
        for layer in range(NUM_LAYERS)
    ]
    outputs = {**layers[-1], "aux_outputs": layers[:-1]}
    if num_prototypes:
        outputs["audio_embed"] = unfold(given["audio_embed"])
        outputs["proto_embed"] = jnp.asarray(given["proto_embed"][0])
        outputs["logit_scale"] = jnp.log(jnp.float32(1 / 0.07))
    targets = {
        "target_masks": unfold(target_masks),
        "target_labels": unfold(target_labels),
        "target_valid": unfold(target_valid),
        "supervised": unfold(supervised),
        "proto_target": unfold(proto_target),
        "proto_valid": unfold(supervised),
    }
    draws = golden_draws(
        arrays, f"{task}/{run}", target_frames, num_frames, num_targets, NUM_LAYERS
    )
    return outputs, targets, PointSamples(*map(jnp.asarray, draws)), target_frames


@functools.partial(jax.jit, static_argnames="loss_config")
@functools.partial(jax.value_and_grad, has_aux=True)
def loss_and_gradients(outputs, targets, draws, loss_config):
    return criterion(outputs, targets, lambda i: jax.tree.map(lambda x: x[i], draws), loss_config)


def relative_error(result, expected):
    scale = max(np.abs(expected).max(), 1e-12)
    return np.abs(np.asarray(result) - expected).max() / scale


@pytest.mark.parametrize(("task", "run"), CASES)
def test_terms_and_gradients_equal_the_original(golden_dir, loss_config, task, run):
    arrays, manifest = archive(golden_dir)
    outputs, targets, draws, _ = golden_problem(arrays, task, run)
    (total, terms), gradients = loss_and_gradients(outputs, targets, draws, loss_config)

    expected = manifest[f"{task}/{run}"]
    assert terms.keys() == expected["weighted"].keys()
    for name, value in expected["weighted"].items():
        np.testing.assert_allclose(terms[name], value, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(total, expected["total"], rtol=2e-6)

    for layer, gradient in enumerate([*gradients["aux_outputs"], gradients]):
        for name in ("logits", "masks"):
            norm = arrays[f"{task}/{run}/grad_{name}_norm_{layer}"]
            result = np.linalg.norm(np.asarray(gradient[f"pred_{name}"], np.float64))
            np.testing.assert_allclose(result, norm, rtol=1e-5, err_msg=f"{name} {layer}")
    if run == "allempty":
        assert not np.any(gradients["pred_masks"])
        return
    stored = {k.split("/grad_")[1]: v for k, v in arrays.items() if f"{task}/{run}/grad_" in k}
    logits = gradients["pred_logits"].reshape(stored["logits_final"].shape)
    assert relative_error(logits, stored["logits_final"]) < 1e-5
    masks = np.asarray(gradients["pred_masks"])
    masks = masks.reshape(-1, *masks.shape[2:]).transpose(0, 3, 1, 2).reshape(-1)
    sample = masks[:: int(stored["masks_final/stride"])]
    assert relative_error(sample, stored["masks_final/sample"]) < 1e-5
    if "audio_embed" in outputs:
        for name in ("audio_embed", "proto_embed", "logit_scale"):
            result = gradients[name].reshape(stored[name].shape)
            assert relative_error(result, stored[name]) < 1e-5, name


@pytest.mark.parametrize("task", ["s4", "ms3", "ss"])
def test_costs_assignments_and_points_equal_the_original(golden_dir, loss_config, task):
    arrays, _ = archive(golden_dir)
    outputs, targets, draws, target_frames = golden_problem(arrays, task, "mixed")
    names = ("target_masks", "target_labels", "target_valid")
    folded = {name: targets[name].reshape(-1, *targets[name].shape[2:]) for name in names}

    @jax.jit
    def stages(prediction, draws):
        logits, masks = (
            prediction[name].reshape(-1, *prediction[name].shape[2:])
            for name in ("pred_logits", "pred_masks")
        )
        cost = matching_cost(
            logits, masks, folded["target_masks"], folded["target_labels"], draws.matcher,
            loss_config,
        )  # fmt: skip
        query = match(cost, folded["target_valid"])
        matched = jnp.take_along_axis(masks, query[:, None, None, :], axis=-1)
        return cost, query, uncertain_points(jnp.moveaxis(matched, -1, 1), draws, loss_config)

    for layer, prediction in enumerate([outputs, *outputs["aux_outputs"]]):
        cost, query, points = map(
            np.asarray, stages(prediction, PointSamples(*(x[layer] for x in draws)))
        )
        pairs = []
        assignment = golden_assignment(arrays, f"{task}/mixed", len(target_frames), layer)
        for i, frame in enumerate(target_frames):
            expected = arrays[f"{task}/mixed/cost/{layer * len(target_frames) + i:03d}"]
            result = cost[frame, :, : expected.shape[1]]
            np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)
            assert query[frame, assignment[i][1]].tolist() == assignment[i][0].tolist()
            pairs += [(frame, target) for target in assignment[i][1]]
        expected = arrays[f"{task}/mixed/point_coords/{layer:02d}"]
        for pair, points_of_pair in zip(pairs, expected, strict=True):
            # Two candidates of nearly equal certainty may change places.
            assert sorted(points[pair].tolist()) == sorted(points_of_pair.tolist()), pair


def random_problem(num_clips, num_frames, seed=0, num_targets=2):
    """Outputs and a batch whose frames are all supervised and have all targets."""
    rng = np.random.default_rng(seed)
    lead = (num_clips, num_frames)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    layers = [
        {"pred_logits": normal(*lead, 6, 3), "pred_masks": normal(*lead, 8, 8, 6)} for _ in "ab"
    ]
    outputs = {**layers[0], "aux_outputs": layers[1:]}
    outputs["audio_embed"], outputs["proto_embed"] = normal(*lead, 16), normal(23, 16)
    outputs["logit_scale"] = jnp.float32(0.3)
    batch = {
        "target_masks": jnp.asarray(rng.uniform(size=(*lead, num_targets, 32, 32)) < 0.5),
        "target_labels": jnp.asarray(rng.integers(0, 2, (*lead, num_targets)), jnp.int32),
        "target_valid": jnp.ones((*lead, num_targets), bool),
        "supervised": jnp.ones(lead, bool),
        "frame_index": jnp.tile(jnp.arange(num_frames, dtype=jnp.int32), (num_clips, 1)),
        "proto_target": jnp.asarray(rng.uniform(size=(*lead, 23)) < 0.1, jnp.float32),
        "proto_valid": jnp.ones(lead, bool),
    }
    return outputs, batch


@functools.partial(jax.jit, static_argnames="loss_config")
@functools.partial(jax.value_and_grad, has_aux=True)
def drawn_loss_and_gradients(outputs, batch, loss_config):
    return compute_losses(outputs, batch, jax.random.key(7), loss_config=loss_config)


def test_unsupervised_frames_change_nothing(loss_config):
    """Frames 0 and 2 give the same terms without frame 1, which gets no gradient."""
    outputs, batch = random_problem(2, 3)
    kept = np.array([0, 2])
    read = jnp.zeros((2, 3), bool).at[:, kept].set(True)
    batch["supervised"] = batch["proto_valid"] = read
    (loss, terms), gradients = drawn_loss_and_gradients(outputs, batch, loss_config)

    shared = ("proto_embed", "logit_scale")
    fewer = jax.tree.map(lambda x: x[:, kept], {k: outputs[k] for k in outputs if k not in shared})
    fewer |= {name: outputs[name] for name in shared}
    batch = {name: x[:, kept] for name, x in batch.items()}
    (alone, alone_terms), alone_gradients = drawn_loss_and_gradients(fewer, batch, loss_config)

    np.testing.assert_allclose(loss, alone, rtol=1e-6)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), terms, alone_terms)
    for name in shared:
        np.testing.assert_allclose(gradients[name], alone_gradients[name], atol=1e-7)
    for name in ("pred_masks", "pred_logits", "audio_embed"):
        assert not np.any(np.delete(gradients[name], kept, axis=1)), name
        np.testing.assert_allclose(gradients[name][:, kept], alone_gradients[name], atol=1e-7)


def test_targets_are_padded_as_the_images_are(loss_config):
    outputs, batch = random_problem(2, 2)
    height, width = 20, 27  # of the image; the predictions cover 32 x 32
    cut = batch["target_masks"][..., :height, :width]
    padded = jnp.zeros_like(batch["target_masks"]).at[..., :height, :width].set(cut)
    found, want = (
        drawn_loss_and_gradients(outputs, batch | {"target_masks": masks}, loss_config)
        for masks in (cut, padded)
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), found, want)


def test_a_frame_without_targets_only_counts_for_the_classes(loss_config):
    outputs, batch = random_problem(2, 2)
    full = drawn_loss_and_gradients(outputs, batch, loss_config)[0][1]
    batch["target_valid"] = batch["target_valid"].at[1].set(False)
    (_, terms), gradients = drawn_loss_and_gradients(outputs, batch, loss_config)
    assert not np.any(gradients["pred_masks"][1]) and np.any(gradients["pred_masks"][0])
    assert np.any(gradients["pred_logits"][1])
    assert terms["loss_ce"] != full["loss_ce"]


def test_a_batch_without_supervision_has_no_loss(loss_config):
    outputs, batch = random_problem(2, 2)
    batch["supervised"] = batch["proto_valid"] = jnp.zeros((2, 2), bool)
    (loss, terms), gradients = drawn_loss_and_gradients(outputs, batch, loss_config)
    assert loss == 0 and set(terms) == {
        *("loss_ce", "loss_mask", "loss_dice", "loss_ce_0", "loss_mask_0", "loss_dice_0"),
        "loss_proto",
    }
    assert all(not np.any(x) for x in jax.tree.leaves(gradients))


def test_draws_depend_on_the_frame_alone(loss_config):
    key = jax.random.key(3)
    many = sample_points(key, jnp.array([0, 1, 1024, 1025]), jnp.int32(2), 2, loss_config)
    few = sample_points(key, jnp.array([1025]), jnp.int32(2), 2, loss_config)
    for name in PointSamples._fields:
        points = np.asarray(getattr(many, name))
        np.testing.assert_array_equal(points[3], getattr(few, name)[0])
        assert len(np.unique(points)) > 0.99 * points.size  # nothing is drawn twice
        assert 0 <= points.min() and points.max() < 1
    assert many.matcher.shape == (4, 48, 2)
    assert many.candidates.shape == (4, 2, 144, 2)
    assert many.random.shape == (4, 2, 12, 2)
    other = sample_points(key, jnp.array([1025]), jnp.int32(1), 2, loss_config)
    assert not np.any(other.matcher == few.matcher)


def test_two_devices_agree_with_one(loss_config):
    """Normalizers are sums over the global batch: the shards have unequal numbers of targets."""
    outputs, batch = random_problem(2, 2)
    batch["target_valid"] = batch["target_valid"].at[0].set(False).at[1, 0, 1].set(False)
    (loss, terms), gradients = drawn_loss_and_gradients(outputs, batch, loss_config)

    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    by_clip = NamedSharding(mesh, PartitionSpec("data"))
    everywhere = NamedSharding(mesh, PartitionSpec())
    shardings = jax.tree.map(lambda _: by_clip, outputs)
    shardings |= {"proto_embed": everywhere, "logit_scale": everywhere}
    sharded = jax.device_put((outputs, batch), (shardings, jax.tree.map(lambda _: by_clip, batch)))
    (loss_2, terms_2), gradients_2 = drawn_loss_and_gradients(*sharded, loss_config)
    np.testing.assert_allclose(loss_2, loss, rtol=1e-6)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), terms_2, terms)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-7), gradients_2, gradients)


def test_bfloat16_predictions_are_compared_in_float32(loss_config):
    outputs, batch = random_problem(2, 2)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), outputs)
    (loss, _), _ = drawn_loss_and_gradients(half, batch, loss_config)
    back = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    (expected, _), _ = drawn_loss_and_gradients(back, batch, loss_config)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
