"""The loss of moment retrieval: the original's terms, gradients and steps; and where it departs."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from avs_jax.convert.ground_names import qd_detr_rules
from avs_jax.convert.rules import invert_rules
from avs_jax.losses.moments import compute_losses, generalized_iou, match_windows
from avs_jax.runtime.optim import flatten, make_optimizer, unflatten
from tests.ground_golden import arrays, golden_model, golden_params, inputs, noise

LOSS = {
    "span": 10.0,
    "giou": 1.0,
    "label": 4.0,
    "eos": 0.1,
    "saliency": 1.0,
    "margin": 0.2,
    "saliency_only": False,
    "same_text_negatives": True,
}
CASES = ("crit", "crit_low", "crit_large", "crit_few_queries", "tvsum")
OURS = {  # term of the goldens -> ours, key of its weight
    "loss_span": ("loss_span", "span"),
    "loss_giou": ("loss_giou", "giou"),
    "loss_label": ("loss_label", "label"),
    "loss_span_0": ("loss_span_0", "span"),
    "loss_giou_0": ("loss_giou_0", "giou"),
    "loss_label_0": ("loss_label_0", "label"),
    "loss_saliency": ("loss_saliency", "saliency"),
    "saliency_hinge": ("saliency_hinge", None),
    "saliency_rank_contrastive": ("saliency_rank", None),
    "saliency_neg_pair": ("saliency_pair", None),
    "class_error": ("class_error", None),
    "class_error_0": ("class_error_0", None),
}


def config(**changes):
    return ConfigDict(LOSS | changes)


def batch_of(case, mask):
    golden = arrays("losses")
    names = ("spans", "spans_mask", "saliency_pos", "saliency_neg", "saliency_all")
    spans, valid, pos, neg, labels = (jnp.asarray(golden[f"{case}/target/{n}"]) for n in names)
    return {
        "video_mask": jnp.asarray(mask) > 0,
        "target_spans": spans,
        "target_valid": valid > 0,
        "saliency_pos_pairs": pos,
        "saliency_neg_pairs": neg,
        "saliency_labels": labels,
        "text_id": jnp.arange(len(labels)),
    }


def assert_terms(case, terms):
    """Relative 3e-6, ten times the floor of the goldens."""
    golden, compared = arrays("losses"), 0
    for theirs, (ours, weight) in OURS.items():
        if f"{case}/loss/{theirs}" in golden:
            expected = golden[f"{case}/loss/{theirs}"] * (LOSS[weight] if weight else 1)
            limit = max(3e-6, 10 * noise("losses")[f"{case}/loss/{theirs}"] / max(expected, 1))
            np.testing.assert_allclose(terms[ours], expected, rtol=limit, atol=1e-6, err_msg=theirs)
            compared += 1
    assert compared == (4 if case == "tvsum" else 12)


def criterion_outputs(case):
    golden = arrays("losses")
    return {
        name: jnp.asarray(golden[f"{case}/in/{name}"])
        for name in "pred_logits pred_spans aux_logits aux_spans".split()
        + ["saliency_scores", "saliency_scores_neg"]
    }


def criterion(read, batch, loss_config):
    outputs = {name: read[name] for name in ("pred_logits", "pred_spans", "saliency_scores")}
    outputs["saliency_neg"] = read["saliency_scores_neg"]
    aux = {"pred_logits": read["aux_logits"], "pred_spans": read["aux_spans"]}
    return compute_losses(outputs | {"aux_outputs": [aux]}, batch, None, loss_config=loss_config)


@functools.cache
def graded(loss_config_items):
    """(outputs, batch) -> ((total, terms), gradients), jitted once per configuration."""
    loss_config = config(**dict(loss_config_items))
    return jax.jit(
        jax.value_and_grad(lambda read, batch: criterion(read, batch, loss_config), has_aux=True)
    )


def grade(read, batch, **changes):
    return graded(tuple(sorted(changes.items())))(read, batch)


@pytest.mark.parametrize("case", CASES)
def test_the_criterion_is_the_original_s(case):
    golden = arrays("losses")
    batch = batch_of(case, golden[f"{case}/in/mask"])
    (total, terms), gradients = grade(criterion_outputs(case), batch, saliency_only=case == "tvsum")
    assert_terms(case, terms)
    expected = golden[f"{case}/loss/total"]
    limit = 10 * noise("losses")[f"{case}/loss/total"]
    np.testing.assert_allclose(total, expected, rtol=0, atol=max(limit, 3e-6 * expected))
    for name, gradient in gradients.items():
        if f"{case}/grad/{name}" in golden:
            np.testing.assert_allclose(
                gradient, golden[f"{case}/grad/{name}"], rtol=0, atol=1e-6, err_msg=name
            )


@pytest.mark.parametrize("case", [case for case in CASES if case != "tvsum"])
@pytest.mark.parametrize("layer", ["final", "aux0"])
def test_the_matching_is_the_original_s(case, layer):
    golden, read = arrays("losses"), criterion_outputs(case)
    prefix = "pred" if layer == "final" else "aux"
    batch = batch_of(case, golden[f"{case}/in/mask"])
    query, is_matched = match_windows(
        read[f"{prefix}_logits"],
        read[f"{prefix}_spans"],
        batch["target_spans"],
        batch["target_valid"],
        config(),
    )
    expected = golden[f"{case}/match/{layer}/query_of_target"]
    clear = golden[f"{case}/match/{layer}/margin"] > 1e-5  # else two windows are the same
    assert clear.any()
    found = np.where(is_matched, query, -1)
    np.testing.assert_array_equal(found[clear], expected[clear])
    np.testing.assert_array_equal(np.sort(found), np.sort(expected))


def test_a_large_negative_score_is_finite():
    """The original is infinite here; every other part agrees."""
    golden = arrays("losses")
    batch = batch_of("crit_overflow", golden["crit_overflow/in/mask"])
    (total, terms), gradients = grade(criterion_outputs("crit_overflow"), batch)
    assert np.isinf(golden["crit_overflow/loss/total"]) and np.isfinite(total)
    assert all(np.isfinite(x).all() for x in gradients.values())
    for theirs, (ours, weight) in OURS.items():
        expected = golden[f"crit_overflow/loss/{theirs}"] * (LOSS[weight] if weight else 1)
        if np.isfinite(expected):
            np.testing.assert_allclose(terms[ours], expected, rtol=3e-6)
    score = np.float64(golden["crit_overflow/in/saliency_scores_neg"])
    valid = golden["crit_overflow/in/mask"] > 0
    pair = np.where(valid, np.logaddexp(0, score), 0).sum(1).mean()
    np.testing.assert_allclose(terms["saliency_pair"], pair, rtol=1e-6)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [((0.1, 0.2), (0.15, 0.3), 2 / 3), ((0.75, 0.5), (0.15, 0.3), -0.2), ((0.4, 0), (0.4, 0), 0)],
)
def test_generalized_iou(a, b, expected):
    value = generalized_iou(jnp.float32(a), jnp.float32(b))
    np.testing.assert_allclose(value, expected, atol=1e-6)


def test_rows_that_share_a_text_are_no_negatives():
    golden, read = arrays("losses"), criterion_outputs("crit")
    batch = batch_of("crit", golden["crit/in/mask"])
    same = batch | {"text_id": jnp.asarray([0, 1, 1, 2, 0])}  # rows 1 and 4 have no negative
    (_, terms), gradients = grade(read, same, saliency_only=True, same_text_negatives=False)
    of_negatives = np.abs(gradients["saliency_scores_neg"]).sum(1)
    np.testing.assert_array_equal(of_negatives == 0, [False, True, False, False, True])
    score, valid = np.float64(read["saliency_scores_neg"]), np.asarray(batch["video_mask"])
    pair = np.where(valid, np.logaddexp(0, score), 0).sum(1)[[0, 2, 3]].mean()
    np.testing.assert_allclose(terms["saliency_pair"], pair, rtol=1e-5)

    one = jax.tree.map(lambda x: x[:1], (read, batch))  # a batch of one is its own neighbor
    (total, terms), gradients = grade(*one, saliency_only=True, same_text_negatives=False)
    assert terms["saliency_pair"] == 0 and np.isfinite(total)
    assert not gradients["saliency_scores_neg"].any()
    (_, terms), _ = grade(*one, saliency_only=True)
    assert terms["saliency_pair"] > 0


def test_padding_and_absent_pairs_and_windows_change_nothing():
    golden, read = arrays("losses"), criterion_outputs("crit")
    batch = batch_of("crit", golden["crit/in/mask"])
    (_, terms), _ = grade(read, batch)
    pad = {"saliency_scores": 5.0, "saliency_scores_neg": 9.0}
    wide = {
        name: jnp.pad(x, ((0, 0), (0, 7)), constant_values=pad[name]) if name in pad else x
        for name, x in read.items()
    }
    extra = dict(batch)
    for name, value in (("video_mask", False), ("saliency_labels", 0.0)):
        extra[name] = jnp.pad(batch[name], ((0, 0), (0, 7)), constant_values=value)
    for name, value in (("saliency_pos_pairs", -1), ("saliency_neg_pairs", 3)):
        extra[name] = jnp.pad(batch[name], ((0, 0), (0, 1)), constant_values=value)
    extra["target_spans"] = jnp.pad(batch["target_spans"], ((0, 0), (0, 2), (0, 0)))
    extra["target_valid"] = jnp.pad(batch["target_valid"], ((0, 0), (0, 2)))
    (_, padded), _ = grade(wide, extra)
    for name, value in terms.items():
        np.testing.assert_allclose(padded[name], value, rtol=1e-6, err_msg=name)


def test_a_batch_without_windows_has_finite_gradients():
    golden, read = arrays("losses"), criterion_outputs("crit")
    batch = batch_of("crit", golden["crit/in/mask"])
    batch |= {
        "target_valid": jnp.zeros_like(batch["target_valid"]),
        "saliency_labels": jnp.zeros_like(batch["saliency_labels"]),
        "saliency_pos_pairs": jnp.full_like(batch["saliency_pos_pairs"], -1),
    }
    (total, terms), gradients = grade(read, batch)
    assert np.isfinite(total) and all(np.isfinite(x).all() for x in gradients.values())
    assert terms["loss_span"] == terms["saliency_rank"] == terms["saliency_hinge"] == 0


# ---- the whole model ----


@functools.cache
def training(case):
    """(params -> ((total, terms), gradients), params) of the golden model in training."""
    model, read = golden_model(case, mask_order="reference"), inputs(case)
    batch = batch_of(case, read["video_mask"])
    loss_config = config()

    def loss(params):
        outputs = model.apply({"params": params}, read, train=True)
        return compute_losses(outputs, batch, None, loss_config=loss_config)

    return jax.jit(jax.value_and_grad(loss, has_aux=True)), golden_params(model, case)


def in_their_order(tree, case):
    """Parameters or gradients by the names of `param/names`."""
    names = [str(name) for name in arrays("losses")[f"{case}/param/names"]]
    theirs = invert_rules(flatten(tree), qd_detr_rules(), names)
    assert len(theirs) == len(names)
    return theirs


@pytest.mark.parametrize("case", [pytest.param("v", marks=pytest.mark.slow), "va"])
def test_the_whole_model_s_loss_and_gradients(case):
    golden = arrays("losses")
    step, params = training(case)
    (total, terms), gradients = step(params)
    assert_terms(case, terms)
    limit = max(10 * noise("losses")[f"{case}/loss/total"], 1e-5)
    np.testing.assert_allclose(total, golden[f"{case}/loss/total"], rtol=0, atol=limit)
    theirs = in_their_order(gradients, case)
    norms = np.array([np.linalg.norm(x) for x in theirs.values()])
    expected = golden[f"{case}/grad_norm"]
    relative = np.abs(norms - expected) / np.maximum(expected, 1e-3)
    assert relative.max() <= 10 * noise("losses")[f"{case}/grad_norm_rel"]
    np.testing.assert_allclose(
        np.sqrt(np.square(norms, dtype=np.float64).sum()),
        golden[f"{case}/grad_norm_total"],
        rtol=1e-5,
    )
    for name, gradient in theirs.items():
        if f"{case}/grad/{name}" in golden:
            reference = golden[f"{case}/grad/{name}"]
            limit = 5e-4 * max(np.abs(reference).max(), 1e-3)
            np.testing.assert_allclose(gradient, reference, rtol=0, atol=limit, err_msg=name)


@pytest.mark.parametrize("case", [pytest.param("v", marks=pytest.mark.slow), "va"])
def test_three_steps_of_adamw(case):
    golden = arrays("losses")
    step, params = training(case)
    settings = ConfigDict({"optim": {}, "train": {"steps": 10, "batch_size": 4}})
    settings.optim = ConfigDict(
        {
            "learning_rate": 1e-4,
            "weight_decay": 1e-4,
            "clip_norm": 0.1,
            "warmup_steps": 0,
            "power": 0.0,
            "moment_dtype": "float32",
            "groups": ((".*", 1.0, 1.0),),
            "frozen": (),
        }
    )
    optimizer, _ = make_optimizer(params, settings)

    @jax.jit
    def update(flat, state, gradients):
        updates, state = optimizer.update(flatten(gradients), state, flat)
        return {path: flat[path] + updates[path] for path in flat}, state

    start = {path: jnp.asarray(value) for path, value in flatten(params).items()}
    flat, losses, steps = start, [], []
    state = jax.jit(optimizer.init)(flat)
    for _ in range(3):
        (total, _), gradients = step(unflatten(flat))
        losses.append(total)
        flat, state = update(flat, state, gradients)
        steps.append({path: flat[path] - start[path] for path in flat})
    losses.append(step(unflatten(flat))[0][0])
    limit = 10 * noise("losses")[f"{case}/adamw/losses"]
    np.testing.assert_allclose(losses, golden[f"{case}/adamw/losses"], rtol=0, atol=limit)

    meta = json.loads(str(golden["meta/json"]))[case]
    without_gradient = set(meta["zero_gradient_tensors"])
    for which, index in ((1, 0), (3, 2)):
        moved = in_their_order(unflatten(steps[index]), case)
        for name, expected in zip(moved, golden[f"{case}/adamw/delta{which}_norm"], strict=True):
            if name not in without_gradient:
                found = np.linalg.norm(moved[name])
                # A step of 1e-4 from scales near 1 keeps four digits.
                assert abs(found - expected) <= 5e-4 * expected, (which, name, found, expected)
    for name, step in in_their_order(unflatten(steps[0]), case).items():
        if f"{case}/adamw/delta1/{name}" in golden and name not in without_gradient:
            expected = golden[f"{case}/adamw/delta1/{name}"]
            np.testing.assert_allclose(step, expected, rtol=0, atol=5e-7, err_msg=name)
