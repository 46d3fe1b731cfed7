"""Losses of alignment: brute-force numbers, gradients, masks, and negatives over all devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from avs_jax.losses.alignment import (
    MAX_SCALE,
    adaptive_margin,
    compute_losses,
    infonce,
    near_seconds,
    same_label,
    scale_of,
    sigmoid,
    triplet,
)
from avs_jax.ops.unit_length import normalize
from tests.cases_golden import arrays, assert_golden, meta

PAIRS = ("av", "at", "vt")
SCALE = 1 / 0.07
THREE = (("audio", "frames"), ("audio", "text"), ("frames", "text"))
AV = THREE[:1]
LOSS = {
    "name": "infonce",
    "unit": "clip",
    "same_class": "negative",
    "margin": 0.2,
    "mining": "all",
    "beta": 0.0,
    "delta": 0.1,
}


def vectors():
    return {name: jnp.asarray(arrays("clip")[f"in/avt_{name}"]) for name in "avt"}


def three_way(free):
    unit = {name: normalize(x) for name, x in free.items()}
    outputs = {"audio_embed": unit["a"], "frames_embed": unit["v"], "text_embed": unit["t"]}
    outputs["logit_scale"] = jnp.log(SCALE)
    batch = {"label": jnp.full(7, -1)}
    return compute_losses(outputs, batch, None, pairs=THREE, loss_config=ConfigDict(LOSS))


def test_three_way_loss_and_gradients():
    (total, terms), grads = jax.jit(jax.value_and_grad(three_way, has_aux=True))(vectors())
    assert_golden("clip", "avt/mean_loss", total)
    names = ("loss_audio_frames", "loss_audio_text", "loss_frames_text")
    for pair, name in zip(PAIRS, names, strict=True):
        assert_golden("clip", f"avt/{pair}/loss", 3 * terms[name])
    for name, gradient in grads.items():
        assert_golden("clip", f"avt/grad_{name}", gradient)


@pytest.mark.parametrize("pair", PAIRS)
def test_masks_and_sigmoid(pair):
    first, second = (normalize(vectors()[name]) for name in pair)
    similarity, golden = first @ second.T, arrays("clip")
    assert_golden("clip", f"avt/{pair}/logits", SCALE * similarity)
    assert_golden("clip", f"avt/{pair}/sigmoid_loss", sigmoid(similarity, 10.0, -10.0))
    labels, clip, moment = (
        jnp.asarray(golden[f"in/avt_{k}"]) for k in ("labels", "clip", "second")
    )
    masks = {"mask_same_class": same_label(labels), "mask_near_second": near_seconds(clip, moment)}
    for name, ignored in masks.items():
        both = [infonce(s, SCALE, ignored=ignored) for s in (similarity, similarity.T)]
        assert_golden("clip", f"avt/{pair}/{name}", jnp.stack(both))


def test_unknown_labels_equal_nothing():
    np.testing.assert_array_equal(
        same_label(jnp.array([2, -1, -1, 2])),
        [[1, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 1]],
    )


@pytest.mark.parametrize("case", ["4x4", "cos", "cos_ids", "ties"])
@pytest.mark.parametrize("side", ["rows", "cols"])
def test_triplets(case, side):
    golden = arrays("retrieval")
    name = {"4x4": "S_4x4", "ties": "S_ties"}.get(case, "S_cos")
    similarity = jnp.asarray(golden[f"in/{name}"], jnp.float32)
    similarity = similarity if side == "rows" else similarity.T
    margin, ignored = (1.0 if case == "ties" else 0.2), None
    if case == "cos_ids":
        ignored = same_label(jnp.asarray(golden["in/cos_ids"]))
    found = {m: triplet(similarity, margin, m, ignored) for m in ("all", "hardest", "semihard")}
    columns = meta("retrieval")["triplet_columns"]
    assert columns[0] == "all: sum over negatives, mean over queries"
    assert columns[5] == "the same: mean over queries that have one"
    for column, mining in ((0, "all"), (3, "hardest"), (5, "semihard")):
        expected = golden[f"triplet/{case}/{side}"][column]
        if not np.isnan(expected):
            assert found[mining] == pytest.approx(expected, rel=1e-6, abs=1e-6), mining


def test_the_numbers_of_the_triplet_example():
    similarity = jnp.asarray(arrays("retrieval")["in/S_4x4"], jnp.float32)
    assert triplet(similarity, 0.2, "hardest") == pytest.approx(0.3375)
    assert triplet(similarity.T, 0.2, "hardest") == pytest.approx(0.3)
    assert triplet(similarity, 0.2, "all") == pytest.approx(0.4)


@pytest.mark.parametrize("mining", ["all", "hardest", "semihard"])
def test_seconds_that_do_not_exist_change_no_triplet(mining):
    rng = np.random.default_rng(4)
    config = ConfigDict(LOSS | {"name": "triplet", "unit": "second", "mining": mining})
    seconds = {
        f"{kind}_seconds": normalize(jnp.asarray(rng.standard_normal((3, 5, 4)), jnp.float32))
        for kind in ("audio", "frames")
    }
    padded = {name: jnp.concatenate([x, x], axis=1) for name, x in seconds.items()}
    losses = []
    for outputs, count in ((seconds, 5), (padded, 10)):
        second = np.tile(np.arange(count), (3, 1))
        batch = {"label": np.arange(3), "valid": second < 5, "second": second}
        losses.append(compute_losses(outputs, batch, None, pairs=AV, loss_config=config)[0])
    assert losses[0] > 0 and losses[1] == pytest.approx(float(losses[0]), rel=1e-6)


def test_adaptive_margin_and_its_gradients():
    golden = arrays("retrieval")
    text, fused, visual = (jnp.asarray(golden[f"in/av_{n}"]) for n in ("text", "fused", "visual"))

    def losses(text, fused, margin):
        similarity = text @ fused.T
        return jnp.stack(
            [
                infonce(similarity, SCALE, margin=margin),
                infonce(similarity.T, SCALE, margin=None if margin is None else margin.T),
            ]
        )

    margin = adaptive_margin(text, visual)  # unit vectors, and the gradient is of them as they are
    assert_golden("retrieval", "avigate/margin", margin)
    without, found = (jax.jit(losses)(text, fused, m) for m in (None, margin))
    six = jnp.concatenate([without, without.mean()[None], found, found.mean()[None]])
    assert_golden("retrieval", "avigate/losses", six)

    def mean(text, fused):
        margin = adaptive_margin(text, visual)
        return losses(text, fused, margin).mean()

    grads = jax.jit(jax.grad(mean, (0, 1)))(text, fused)
    for name, gradient in zip(("text", "fused"), grads, strict=True):
        assert_golden("retrieval", f"avigate/grad_{name}", gradient)


def test_several_positives_by_brute_force():
    rng = np.random.default_rng(0)
    similarity = rng.standard_normal((6, 6))
    labels = np.array([0, 1, 0, 2, 1, 0])
    positives = labels[:, None] == labels[None]
    ignored = rng.random((6, 6)) < 0.3
    positives[3] = False  # a query without a positive does not count
    expected = []
    for i in range(6):
        shown = [j for j in range(6) if positives[i, j] or not ignored[i, j]]
        log_p = {j: 3 * similarity[i, j] for j in shown}
        total = np.log(sum(np.exp(x) for x in log_p.values()))
        own = [total - log_p[j] for j in shown if positives[i, j]]
        expected += [np.mean(own)] if own else []
    loss = jax.jit(functools.partial(infonce, scale=3.0))
    args = [jnp.asarray(x) for x in (positives, ignored)]
    single = jnp.asarray(similarity, jnp.float32)
    value, gradient = jax.jit(
        jax.value_and_grad(lambda s: loss(s, positives=args[0], ignored=args[1]))
    )(single)
    assert value == pytest.approx(np.mean(expected), rel=1e-6)
    assert jnp.isfinite(gradient).all() and not gradient[3].any()
    nothing = loss(single, positives=jnp.zeros((6, 6), bool))
    assert nothing == 0


def test_a_row_that_hides_everything_has_a_finite_gradient():
    hidden = jnp.zeros((2, 2), bool), jnp.ones((2, 2), bool)
    value, gradient = jax.value_and_grad(lambda s: infonce(s, 1.0, *hidden))(jnp.ones((2, 2)))
    assert value == 0 and not gradient.any()


def test_the_scale_is_clamped_and_can_come_back():
    limit = np.log(MAX_SCALE)
    assert scale_of(jnp.float32(limit + 1)) == pytest.approx(MAX_SCALE, rel=1e-6)
    assert scale_of(jnp.float32(1.0)) == pytest.approx(np.e)
    slope = jax.grad(lambda s, sign: sign * scale_of(s))
    assert slope(limit + 1, -1.0) == 0  # a step downhill would raise it
    assert slope(limit + 1, 1.0) == pytest.approx(MAX_SCALE, rel=1e-6)
    assert slope(1.0, -1.0) == pytest.approx(-np.e)


@pytest.mark.parametrize(
    "name, unit",
    [
        ("infonce", "second"),
        ("sigmoid", "clip"),
        pytest.param("triplet", "second", marks=pytest.mark.slow),
    ],
)
def test_negatives_come_from_all_devices(name, unit):
    """Eight devices with one clip each give the loss and gradient of one device with eight."""
    rng = np.random.default_rng(2)
    outputs = {
        f"{kind}_{place}": rng.standard_normal((8, *frames, 4)).astype(np.float32)
        for kind in ("audio", "frames")
        for place, frames in (("embed", ()), ("seconds", (3,)))
    }
    batch = {"label": np.arange(8) % 5, "valid": rng.random((8, 3)) < 0.8}
    batch["second"] = np.tile(np.arange(3), (8, 1))
    config = ConfigDict(LOSS | {"name": name, "unit": unit})
    config.same_class, config.beta = "ignored", 0.2

    def loss(outputs, batch):
        unit = {key: normalize(x) for key, x in outputs.items()}
        unit |= {"logit_scale": jnp.float32(2.0), "logit_bias": jnp.float32(-5.0)}
        return compute_losses(unit, batch, None, pairs=AV, loss_config=config)[0]

    step = jax.jit(jax.value_and_grad(loss))
    one = step(outputs, batch)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    many = step(*jax.device_put((outputs, batch), rows))
    assert len(many[1]["audio_embed"].devices()) == 8 == mesh.size
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), many, one)
    alone = loss({k: x[:1] for k, x in outputs.items()}, {k: x[:1] for k, x in batch.items()})
    assert abs(float(alone) - float(one[0])) > 1e-3  # a device by itself has no negatives


def test_relations_of_a_batch_by_brute_force():
    """Seconds: neighbors and padding are no negatives, nor are clips of the class if asked.

    The seconds 0, 1 and 4 were drawn: 4 is a negative of both others.
    """
    rng = np.random.default_rng(3)
    label = np.array([4, 4, -1, 2])
    valid = np.ones((4, 3), bool)
    valid[1, 2] = False
    audio, frames = (normalize(jnp.asarray(rng.standard_normal((4, 3, 5)))) for _ in range(2))
    outputs = {"audio_seconds": audio, "frames_seconds": frames, "logit_scale": jnp.float32(1.5)}
    changes = {"unit": "second", "same_class": "ignored"}
    second = np.tile([0, 1, 4], (4, 1))
    batch = {"label": label, "valid": valid, "second": second}
    config = ConfigDict(LOSS | changes)
    total = jax.jit(lambda o, b: compute_losses(o, b, None, pairs=AV, loss_config=config)[0])(
        outputs, batch
    )
    places = [(b, t) for b in range(4) for t in range(3) if valid[b, t]]
    similarity = np.exp(1.5) * np.einsum("btd,csd->btcs", audio, frames)
    terms = []
    for b, t in places:
        for flip in (False, True):
            logits = []
            for c, s in places:
                is_own = (b, t) == (c, s)
                near = b == c and abs(second[b, t] - second[c, s]) <= 1
                same = label[b] == label[c] >= 0
                if is_own or not (near or same):
                    logits.append(similarity[c, s, b, t] if flip else similarity[b, t, c, s])
            terms.append(np.log(np.exp(logits).sum()) - similarity[b, t, b, t])
    assert total == pytest.approx(np.mean(terms), rel=1e-5)


def test_margins_shrink_for_pairs_that_are_alike():
    close = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    expected = [[0, 0.04, 0.1], [0.04, 0, 0.08], [0.1, 0.08, 0]]  # 0.2 (1 - cosine), at most 0.1
    np.testing.assert_allclose(adaptive_margin(close, close), expected, atol=1e-7)
