"""Boundary refinement: gradients into the features, losses, and its start as the identity."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from avs_jax.losses.boundary import boundary_loss, edge_target
from avs_jax.losses.criterion import compute_losses
from avs_jax.models import build_model
from avs_jax.models.decoders.boundary import (
    AuxiliaryBoundary,
    BoundaryRefinement,
    ramp_value,
    scale_gradient,
)
from avs_jax.runtime.checkpoint import save_variables
from avs_jax.runtime.pretrained import init_from_checkpoint
from configs import parts
from configs.s4_ama_brm import get_config
from configs.segment import segment_config
from tests.golden.compare import shapes_of
from tests.losses.test_criterion import random_problem
from tests.vct_golden import tiny_batch, tiny_config, tiny_model, tiny_outputs


def draw(shapes, seed=0):
    """Random variables of the given shapes; scales and variances around 1."""
    rng = np.random.default_rng(seed)

    def value(path, leaf):
        center = float(path[-1].key in ("scale", "var"))
        return (center + 0.1 * rng.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(value, shapes)


def features(num_frames=2, channels=16, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((num_frames, 8, 6, channels), (num_frames, 8, 6, 24))
    return tuple(rng.standard_normal(shape).astype(np.float32) for shape in shapes)


# ---- the module ----


def test_the_ramp_rises_between_its_ends():
    got = [float(ramp_value(p, (0.3, 0.6))) for p in (0.0, 0.3, 0.45, 0.6, 1.0)]
    np.testing.assert_allclose(got, [0, 0, 0.5, 1, 1], atol=1e-6)
    assert [float(ramp_value(p, (0.0, 0.0))) for p in (0.0, 0.5)] == [1, 1]
    assert [float(ramp_value(p, (0.5, 0.5))) for p in (0.49, 0.5)] == [0, 1]


def test_scaling_the_gradient_keeps_the_value():
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    value, gradient = jax.vmap(jax.value_and_grad(lambda v: scale_gradient(v, jnp.float32(0.3))))(x)
    np.testing.assert_array_equal(value, x)
    np.testing.assert_allclose(gradient, 0.3)


@pytest.mark.parametrize("module", [AuxiliaryBoundary, BoundaryRefinement])
def test_the_ramp_scales_the_gradient_of_the_edges(module):
    """The gradient of the edges in the features is r times what it is without a ramp."""
    brm, given = module(ramp=(0.25, 0.75)), features()
    variables = draw(jax.eval_shape(brm.init, jax.random.key(0), *given))

    @jax.jit
    def gradients(given, progress):
        def edges(given):
            logits = brm.apply(variables, *given, progress=progress)[1]
            return jnp.square(logits).sum()

        return jax.grad(edges)(given)

    none, half, full = (gradients(given, progress) for progress in (0.25, 0.5, 1.0))
    assert not np.any(none[0]) and not np.any(none[1])
    np.testing.assert_allclose(half[0], full[0] / 2, rtol=1e-4, atol=1e-6)
    assert np.any(full[0]) and np.any(full[1]) == (module is BoundaryRefinement)


def test_refinement_starts_as_the_identity_with_rare_edges():
    brm, given = BoundaryRefinement(), features()
    variables = jax.jit(brm.init)(jax.random.key(0), *given)
    refined, logits = jax.jit(brm.apply)(variables, *given)
    np.testing.assert_array_equal(refined, given[0])
    assert not any(np.any(x) for x in variables["params"]["delta"].values())
    assert 0.02 < float(jax.nn.sigmoid(logits).mean()) < 0.12
    assert "batch_stats" not in variables


def test_refinement_matches_its_formula():
    """Against NumPy: both projections, two normed convolutions, the gate on the edge."""
    brm, (mask_features, res2) = BoundaryRefinement(), features(1)
    variables = draw(jax.eval_shape(brm.init, jax.random.key(0), mask_features, res2))
    p = variables["params"]

    def linear(x, name):
        return x @ p[name]["kernel"] + p[name]["bias"]

    def normed_conv(x, name):
        height, width = x.shape[1:3]
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        y = sum(
            padded[:, i : i + height, j : j + width] @ p[name]["kernel"][i, j]
            for i in range(3)
            for j in range(3)
        )
        grouped = y.reshape(1, height, width, 32, -1)
        mean, var = (f(grouped, axis=(1, 2, 4), keepdims=True) for f in (np.mean, np.var))
        y = ((grouped - mean) / np.sqrt(var + 1e-5)).reshape(y.shape)
        y = y * p[name]["norm"]["scale"] + p[name]["norm"]["bias"]
        return np.asarray(jax.nn.gelu(y, approximate=False))

    x = np.concatenate([linear(mask_features, "mask_features_proj"), linear(res2, "res2_proj")], -1)
    x = normed_conv(normed_conv(x, "conv0"), "conv1")
    edge = linear(x, "edge")
    want = mask_features + linear(np.concatenate([x, x / (1 + np.exp(-edge))], -1), "delta")
    refined, logits = jax.jit(brm.apply)(variables, mask_features, res2)
    np.testing.assert_allclose(refined, want, atol=2e-4)
    np.testing.assert_allclose(logits, edge[..., 0], atol=2e-4)


def test_the_auxiliary_head_changes_no_features_but_its_statistics():
    brm, given = AuxiliaryBoundary(), features(3)
    variables = draw(jax.eval_shape(brm.init, jax.random.key(0), *given))
    assert shapes_of(variables["params"]) == {
        "conv/kernel": (3, 3, 16, 128),
        "conv/bias": (128,),
        "norm/scale": (128,),
        "norm/bias": (128,),
        "edge/kernel": (128, 1),
        "edge/bias": (1,),
    }
    valid = np.array([True, True, False])

    @jax.jit
    def train(given):
        return brm.apply(variables, *given, train=True, valid=valid, mutable=["batch_stats"])

    (out, logits), updates = train(given)
    np.testing.assert_array_equal(out, given[0])
    moved = updates["batch_stats"]["norm"]["mean"] - variables["batch_stats"]["norm"]["mean"]
    assert np.all(moved != 0)
    padded = given[0].copy()
    padded[2] = 100.0  # a frame that does not exist
    (_, other), other_updates = train((padded, given[1]))
    np.testing.assert_array_equal(other[:2], logits[:2])
    jax.tree.map(np.testing.assert_array_equal, other_updates, updates)


# ---- the loss ----


def loss_config(**changes):
    config = segment_config().loss
    config.num_points = 48
    config.boundary.update(changes)
    return FrozenConfigDict(config)


def square_problem(num_frames=2):
    """Frames of 32 x 32 px with a square that sounds, and the background."""
    mask = np.zeros((1, num_frames, 32, 32), bool)
    mask[:, :, 6:21, 9:30] = True
    return {
        "target_masks": np.stack([~mask, mask], axis=2),
        "target_labels": np.tile(np.array([0, 1], np.int32), (1, num_frames, 1)),
        "target_valid": np.ones((1, num_frames, 2), bool),
        "supervised": np.ones((1, num_frames), bool),
    }


def compute(logits, targets, mask_terms=1.0, **changes):
    outputs = {"edge_logits": jnp.asarray(logits, jnp.float32)}
    config = loss_config(**changes)
    # Waits: callers write into the arrays that it reads.
    return jax.block_until_ready(_loss(outputs, targets, jnp.float32(mask_terms), config, {}))


_loss = jax.jit(boundary_loss, static_argnames="loss_config")


def test_the_target_is_the_local_range_of_the_area_average():
    rng = np.random.default_rng(0)
    mask = rng.random((2, 16, 22)) < 0.6
    got = np.asarray(edge_target(jnp.asarray(mask), (5, 8)))
    area = np.pad(mask, ((0, 0), (0, 0), (0, 2)), "edge").reshape(2, 4, 4, 6, 4).mean((2, 4))
    assert not got[:, 4:].any() and not got[:, :, 6:].any()  # the padding
    for n, i, j in np.ndindex(2, 4, 6):
        near = area[n, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
        np.testing.assert_allclose(got[n, i, j], near.max() - near.min(), atol=1e-6)
    for size in (16, 14, 12):  # the border of the image is not an edge, padded or not
        assert not np.any(edge_target(jnp.ones((1, size, size), bool), (4, 4)))


def test_background_and_padded_masks_have_no_edges():
    targets = square_problem(1)
    targets["target_labels"][:] = 0
    only_background = compute(np.zeros((1, 1, 8, 8)), targets, kind="balanced")[1]
    targets["target_labels"][..., 1] = 5
    targets["target_valid"][..., 1] = False
    absent = compute(np.zeros((1, 1, 8, 8)), targets, kind="balanced")[1]
    assert only_background["boundary_dice"] == absent["boundary_dice"] == 0
    targets["target_valid"][..., 1] = True
    assert compute(np.zeros((1, 1, 8, 8)), targets, kind="balanced")[1]["boundary_dice"] > 0


def test_a_constant_cannot_reduce_the_balanced_loss():
    """ln 2 is the least that a constant costs, while the weighted loss falls far below."""
    targets = square_problem(1)
    costs = {
        kind: [
            float(compute(np.full((1, 1, 8, 8), x), targets, kind=kind)[1]["boundary_bce"])
            for x in (-3.0, -1.0, 0.0, 1.0)
        ]
        for kind in ("balanced", "weighted")
    }
    np.testing.assert_allclose(costs["balanced"][2], np.log(2), rtol=1e-6)
    assert min(costs["balanced"]) == costs["balanced"][2]


def test_the_losses_match_their_formulas():
    targets = square_problem(1)
    x = np.random.default_rng(1).standard_normal((1, 1, 8, 8))
    b = np.asarray(edge_target(jnp.asarray(targets["target_masks"][0, :, 1]), (8, 8)))[0]
    p = 1 / (1 + np.exp(-x[0, 0]))
    prevalence = np.clip(b.mean(), 0.02, 0.5)
    weight = ((1 - prevalence) * b, prevalence * (1 - b))
    bce = -(weight[0] * np.log(p) + weight[1] * np.log(1 - p)) / (2 * prevalence * (1 - prevalence))
    dice = 1 - (2 * (p * b).sum() + 1) / ((p**2).sum() + (b**2).sum() + 1)
    loss, figures = compute(x, targets, kind="balanced", weight=0.5)
    np.testing.assert_allclose(figures["boundary_bce"], bce.mean(), rtol=1e-5)
    np.testing.assert_allclose(figures["boundary_dice"], dice, rtol=1e-5)
    np.testing.assert_allclose(loss, 0.5 * (bce.mean() + dice), rtol=1e-5)

    weighted = -(5 * b * np.log(p) + (1 - b) * np.log(1 - p))
    loss, figures = compute(x, targets, weight=0.2)
    np.testing.assert_allclose(loss, 0.2 * weighted.mean(), rtol=1e-5)
    assert figures["boundary_dice"] == 0 and figures["boundary_weight"] == np.float32(0.2)


def test_the_share_of_the_masks_loss_caps_the_weight():
    targets = square_problem(1)
    x = np.random.default_rng(1).standard_normal((1, 1, 8, 8))
    for mask_terms, capped in ((0.5, True), (1000.0, False), (0.0, True)):
        loss, figures = compute(x, targets, mask_terms, kind="balanced", weight=0.2, max_share=0.1)
        want = (
            0.1 * mask_terms
            if capped
            else 0.2 * (figures["boundary_bce"] + figures["boundary_dice"])
        )
        np.testing.assert_allclose(loss, want, rtol=1e-5)

    def term(x, mask_terms):
        outputs = {"edge_logits": x}
        config = loss_config(kind="balanced", max_share=0.1)
        return boundary_loss(outputs, targets, mask_terms, config, {})[0]

    by_edge, by_mask = jax.grad(term, (0, 1))(jnp.asarray(x, jnp.float32), jnp.float32(0.5))
    assert np.any(by_edge) and by_mask == 0  # the weight is a constant


@pytest.mark.parametrize("mask_terms", [(9.0, 8.0, 7.0), (2.0, 0.1, 0.05)])
def test_micro_batches_are_capped_one_by_one(mask_terms):
    """Where none is capped, they add up; where one is, to less than the whole batch's."""
    config = loss_config(kind="balanced", weight=0.2, max_share=0.1)
    targets = jax.tree.map(lambda x: np.tile(x, (3,) + (1,) * (x.ndim - 1)), square_problem(1))
    x = jnp.asarray(np.random.default_rng(1).standard_normal((3, 1, 8, 8)), jnp.float32)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def term(x, targets, mask_terms, norms):
        return boundary_loss({"edge_logits": x}, targets, mask_terms, config, norms)

    (whole, _), gradient = term(x, targets, sum(mask_terms), {})
    total, gradients = 0.0, []
    for i, own_terms in enumerate(mask_terms):
        part = jax.tree.map(lambda x, i=i: x[i : i + 1], (x, targets))
        (value, figures), of_part = term(*part, own_terms, {"frames": 3.0})
        loss = figures["boundary_bce"] + figures["boundary_dice"]
        np.testing.assert_allclose(value, min(0.2 * loss, 0.1 * own_terms), rtol=1e-5)
        total += value
        gradients.append(of_part)
    if min(mask_terms) > 1:
        np.testing.assert_allclose(total, whole, rtol=1e-5)
        np.testing.assert_allclose(np.concatenate(gradients), gradient, atol=1e-7)
    else:
        assert total < 0.8 * whole


def test_frames_without_annotation_and_without_edges():
    """The first have no weight; the second only contribute their BCE."""
    x = np.random.default_rng(1).standard_normal((1, 3, 8, 8))
    targets = square_problem(3)
    targets["supervised"][0, 1] = False
    targets["target_masks"][0, 2, 1] = False
    got = compute(x, targets, kind="balanced")[1]

    def alone(frame):
        part = {name: value[:, frame : frame + 1] for name, value in targets.items()}
        return compute(x[:, frame : frame + 1], part, kind="balanced")[1]

    for name in ("boundary_bce", "boundary_dice"):
        np.testing.assert_allclose(got[name], (alone(0)[name] + alone(2)[name]) / 2, rtol=1e-6)
    assert alone(2)["boundary_dice"] == 0 < alone(2)["boundary_bce"]
    targets["supervised"][:] = False
    assert compute(x, targets, kind="balanced", max_share=0.1)[0] == 0


def test_an_unknown_kind_names_the_choices():
    with pytest.raises(ValueError, match=r"loss.boundary.kind = 'dice': .*'balanced', 'weighted'"):
        compute(np.zeros((1, 1, 8, 8)), square_problem(1), kind="dice")


def test_the_criterion_only_adds_the_boundary_term():
    outputs, batch = random_problem(2, 2)
    compute = jax.jit(compute_losses, static_argnames="loss_config")
    plain, plain_terms = compute(outputs, batch, jax.random.key(7), loss_config=loss_config())
    edges = jnp.asarray(np.random.default_rng(0).standard_normal((2, 2, 8, 8)), jnp.float32)
    outputs |= {"edge_logits": edges}
    total, terms = compute(outputs, batch, jax.random.key(7), loss_config=loss_config())
    added = set(terms) - set(plain_terms)
    assert added == {"loss_boundary", "boundary_bce", "boundary_dice", "boundary_weight"}
    for name, value in plain_terms.items():
        np.testing.assert_allclose(terms[name], value, rtol=1e-6, err_msg=name)
    losses = [value for name, value in terms.items() if name.startswith("loss_")]
    np.testing.assert_allclose(total, sum(losses), rtol=1e-6)
    np.testing.assert_allclose(total - plain, terms["loss_boundary"], rtol=1e-4)
    assert terms["loss_boundary"] > 0


# ---- the whole model ----


@pytest.mark.slow
def test_adding_refinement_to_a_checkpoint_changes_no_mask(tmp_path):
    """VCT's golden weights, AMA at lambda 0 and fresh BRM: the masks of VCT without either."""
    config, batch = tiny_config("ms3"), tiny_batch("ms3")
    config.fusion, config.decoder.lambda_init = parts.ama(), 0.0
    config.refiner = get_config().model.refiner
    batch["motion"] = np.random.default_rng(0).random((*batch["images"].shape[:4], 1), np.float32)
    model = build_model(config)
    save_variables(tmp_path / "vct", {"params": tiny_model("ms3")[1]}, get_config())
    fresh = ("ama/.*", "brm/.*", ".*/lambda")
    initial = jax.jit(lambda: only(fresh, model.init(jax.random.key(3), batch)["params"]))()
    stats = jax.jit(lambda: model.init(jax.random.key(3), batch)["batch_stats"])()
    params, stats, aside = init_from_checkpoint(
        initial, stats, tmp_path / "vct", (*fresh, ".*(mean|var)")
    )
    assert {path.split("/")[0] for path in aside} == {"ama", "brm", "predictor"}

    # The batch is a constant of both programs: XLA then does the same to what they share.
    apply = jax.jit(lambda params: model.apply({"params": params, "batch_stats": stats}, batch))
    out, plain = apply(params), tiny_outputs("ms3")
    for field in ("pred_masks", "pred_logits"):
        np.testing.assert_array_equal(out[field], plain[field])
        for aux, plain_aux in zip(out["aux_outputs"], plain["aux_outputs"], strict=True):
            np.testing.assert_array_equal(aux[field], plain_aux[field])
    assert np.ptp(out["motion_weight"]) > 0.9 and np.ptp(out["edge_logits"]) > 0

    params["brm"]["delta"]["bias"] += 0.1
    assert np.any(np.asarray(apply(params)["pred_masks"]) != plain["pred_masks"])


def only(patterns, params):
    """The initial values of the paths that match, zeros for the others: quicker than all."""

    def value(path, x):
        path = "/".join(key.key for key in path)
        return x if any(re.fullmatch(rule, path) for rule in patterns) else jnp.zeros_like(x)

    return jax.tree_util.tree_map_with_path(value, params)
