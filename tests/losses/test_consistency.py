"""The consistency of AMA: the loss by brute force, who takes part, and who learns from it."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax.losses.consistency import consistency_loss
from avs_jax.models.fusion.ama import AMA, STAGE
from avs_jax.models.rules import check_rules
from avs_jax.models.stage import StageInputs
from avs_jax.spec import InputError
from avs_jax.tasks import make_task
from tests import small

B, T, E = 3, 2, 4


def loss_config(weight=0.5, tau=0.2, kind="contrast", tau_motion=0.3):
    keys = {"weight": weight, "tau": tau, "kind": kind, "tau_motion": tau_motion}
    return types.SimpleNamespace(consistency=types.SimpleNamespace(**keys))


def a_case(seed=0):
    """Clip 1 has a still frame and clip 2 a frame without an object (a false sound)."""
    rng = np.random.default_rng(seed)
    embed = rng.standard_normal((2, B, T, E)).astype(np.float32)
    embed /= np.linalg.norm(embed, axis=-1, keepdims=True)
    energy = np.full((B, T), 0.3, np.float32)
    energy[1, 0] = 0
    masks = np.zeros((B, T, 2, 32, 32), bool)
    masks[:, :, 1, :16] = True
    masks[0, 1, 1, :, :24] = True  # half cells
    attention = rng.dirichlet(np.ones(4), (B, T)).reshape(B, T, 2, 2).astype(np.float32)
    cells = rng.uniform(0, 0.6, (B, T, 2, 2)).astype(np.float32)
    cells[1, 0] = 0
    labels = np.tile(np.array([0, 1], np.int32), (B, T, 1))
    valid = np.ones((B, T, 2), bool)
    valid[2, 1, 1] = False
    outputs = {
        "motion_embed": embed[0],
        "motion_audio_embed": embed[1],
        "motion_energy": energy,
        "motion_ramp": np.full((B, T), 0.4, np.float32),
        "motion_attention": attention,
        "motion_cells": cells,
    }
    targets = {
        "supervised": np.ones((B, T), bool),
        "frame_index": np.tile(np.arange(T), (B, 1)),
        "target_masks": masks,
        "target_labels": labels,
        "target_valid": valid,
    }
    return outputs, targets


def brute_force(outputs, part, tau):
    motion, audio = (outputs[n].astype(np.float64) for n in ("motion_embed", "motion_audio_embed"))
    terms = []
    for b, t in part:
        others = [(c, s) for c, s in part if c != b]
        own = motion[b, t] @ audio[b, t] / tau
        for score in (
            [motion[b, t] @ audio[j] / tau for j in others],
            [motion[j] @ audio[b, t] / tau for j in others],
        ):
            terms.append(np.log(np.exp([own, *score]).sum()) - own)
    return np.mean(terms)


def test_against_brute_force():
    outputs, targets = a_case()
    part = [(0, 0), (0, 1), (1, 1), (2, 0)]
    got = consistency_loss(outputs, targets, loss_config(), {})
    np.testing.assert_allclose(got, 0.5 * 0.4 * brute_force(outputs, part, 0.2), rtol=1e-5)
    targets["supervised"][0, 1] = False
    got = consistency_loss(outputs, targets, loss_config(), {})
    want = 0.5 * 0.4 * brute_force(outputs, [(0, 0), (1, 1), (2, 0)], 0.2)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    targets["supervised"][:] = False
    assert consistency_loss(outputs, targets, loss_config(), {}) == 0


def map_by_hand(outputs, targets, tau_motion):
    """Loops over frames and cells of 16 x 16 pixels."""
    total = 0.0
    for b, t in np.ndindex(B, T):
        if not (targets["supervised"][b, t] and targets["target_valid"][b, t, 1]):
            continue
        looked_at = energy = area = 0.0
        for y, x in np.ndindex(2, 2):
            cell = targets["target_masks"][b, t, 1, 16 * y :, 16 * x :][:16, :16]
            share = np.mean(cell, dtype=np.float64)
            looked_at += share * float(outputs["motion_attention"][b, t, y, x])
            energy += share * float(outputs["motion_cells"][b, t, y, x])
            area += share
        total += min(1.0, energy / area / tau_motion) * -np.log(looked_at)
    return total / targets["supervised"].sum()


@pytest.mark.parametrize("tau_motion", [0.3, 1e-3])
def test_the_map_against_loops(tau_motion):
    outputs, targets = a_case()
    config = loss_config(kind="map", tau_motion=tau_motion)
    want = 0.5 * 0.4 * map_by_hand(outputs, targets, tau_motion)
    assert want > 0.05
    np.testing.assert_allclose(consistency_loss(outputs, targets, config, {}), want, rtol=1e-5)
    both = consistency_loss(outputs, targets, loss_config(kind="both", tau_motion=tau_motion), {})
    want += float(consistency_loss(outputs, targets, loss_config(), {}))
    np.testing.assert_allclose(both, want, rtol=1e-5)
    targets["supervised"][0] = targets["supervised"][2, 0] = False
    want = 0.5 * 0.4 * map_by_hand(outputs, targets, tau_motion)
    np.testing.assert_allclose(consistency_loss(outputs, targets, config, {}), want, rtol=1e-5)
    targets["supervised"][:] = False
    assert consistency_loss(outputs, targets, config, {}) == 0


def test_the_map_covers_the_padded_image():
    """AMA pads the motion of an image of 20 x 27 px to 32 x 32."""
    outputs, targets = a_case()
    masks, config = targets["target_masks"], loss_config(kind="map")
    targets["target_masks"] = masks[..., :20, :27]
    found = consistency_loss(outputs, targets, config, {})
    masks[..., 20:, :] = masks[..., 27:] = False
    want = consistency_loss(outputs, targets | {"target_masks": masks}, config, {})
    np.testing.assert_allclose(found, want, rtol=1e-6)


def test_the_map_of_micro_batches_adds_up():
    outputs, targets = a_case()
    targets["supervised"][2, 0] = False
    config = loss_config(kind="map")
    parts = [
        consistency_loss(
            *({name: x[b : b + 1] for name, x in given.items()} for given in (outputs, targets)),
            config,
            {"frames": jnp.float32(B * T - 1)},
        )
        for b in range(B)
    ]
    np.testing.assert_allclose(
        sum(parts), consistency_loss(outputs, targets, config, {}), rtol=1e-5
    )
    for kind in ("contrast", "both"):
        with pytest.raises(InputError, match=f"accumulate must be 1 .*kind = '{kind}'"):
            consistency_loss(outputs, targets, loss_config(kind=kind), {"frames": jnp.float32(1)})


def test_gradients_of_the_map_are_finite_and_only_of_moving_objects():
    """Also where nothing moves, where there is no object, and where attention misses it wholly."""
    outputs, targets = a_case()
    logits = np.random.default_rng(1).standard_normal((B, T, 4)).astype(np.float32)
    logits[2, 0, 2:] = 200  # below the object: its cells get exactly 0

    def total(logits):
        attention = jax.nn.softmax(logits).reshape(B, T, 2, 2)
        given = outputs | {"motion_attention": attention}
        return consistency_loss(given, targets, loss_config(kind="map"), {})

    value, gradient = jax.value_and_grad(total)(logits)
    assert np.isfinite(value) and np.isfinite(gradient).all()
    strength = np.abs(gradient).max(-1)
    np.testing.assert_array_equal(strength > 1e-4, [[True, True], [False, True], [False, False]])
    assert not strength[1, 0] and not strength[2, 1]
    # A step down moves the attention onto the object.
    assert (gradient[0, 0, :2] < 0).all() and (gradient[0, 0, 2:] > 0).all()
    # An object that takes twice the energy to count counts half.
    outputs["motion_cells"][:] = 0.1
    full, half = (
        consistency_loss(outputs, targets, loss_config(kind="map", tau_motion=tau), {})
        for tau in (0.1, 0.2)
    )
    np.testing.assert_allclose(half, full / 2, rtol=1e-5)


def test_gradients_reach_the_frames_that_take_part_alone():
    outputs, targets = a_case()

    def total(motion):
        return consistency_loss(outputs | {"motion_embed": motion}, targets, loss_config(), {})

    gradient = np.abs(jax.grad(total)(outputs["motion_embed"])).max(-1)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient > 0, [[True, True], [False, True], [True, False]])


def test_micro_batches_and_bad_values_are_errors():
    outputs, targets = a_case()
    with pytest.raises(InputError, match="train.accumulate must be 1"):
        consistency_loss(outputs, targets, loss_config(), {"frames": jnp.float32(1)})
    with pytest.raises(InputError, match="loss.consistency.tau = 0: expected above 0"):
        consistency_loss(outputs, targets, loss_config(tau=0), {})
    with pytest.raises(InputError, match="tau_motion = 0: expected above 0"):
        consistency_loss(outputs, targets, loss_config(kind="map", tau_motion=0), {})
    with pytest.raises(InputError, match="kind = 'maps': choose one of .'both', 'contrast', 'map'"):
        consistency_loss(outputs, targets, loss_config(kind="maps"), {})
    for key, value in (("consistency", "on"), ("consistency_warmup", 2.0)):
        with pytest.raises(InputError, match=f"fusion.{key} = {value!r}: expected"):
            check_rules(AMA.RULES, {"fusion": {"name": "ama", "embed_dim": 256, key: value}})


@pytest.mark.slow
def test_the_value_path_has_a_reader_and_changes_no_map():
    rng = np.random.default_rng(0)
    audio = rng.standard_normal((4, 8)).astype(np.float32)
    motion = rng.random((4, 12, 12, 1)).astype(np.float32)
    fields = dict(embed_dim=16, num_heads=2, grid=6)
    model = AMA(consistency=True, **fields)
    variables = model.init(jax.random.key(0), audio, motion)
    new = ("v_proj", "motion_embed", "audio_embed")
    plain = {k: v for k, v in variables["params"].items() if k not in new}
    want, _ = AMA(**fields).apply(variables | {"params": plain}, audio, motion)
    weight, found = model.apply(variables, audio, motion)
    np.testing.assert_array_equal(weight, want)
    for name in ("motion_embed", "motion_audio_embed"):
        np.testing.assert_allclose(np.linalg.norm(found[name], axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(found["motion_energy"], np.square(motion).mean((1, 2, 3)), rtol=1e-5)

    # By hand: values weighted by each head's attention.
    params = variables["params"]
    embed = jax.tree.map(np.asarray, params["motion_embed"])
    _, kept = model.apply(
        variables,
        audio,
        motion,
        capture_intermediates=lambda module, _: module.name == "v_proj",
        mutable=["intermediates"],
    )
    values = np.asarray(kept["intermediates"]["v_proj"]["__call__"][0]).reshape(4, 36, 2, 8)
    seen = np.einsum("ngs,nsgc->ngc", found["attention"], values).reshape(4, 16)
    seen = seen @ embed["kernel"] + embed["bias"]
    want = seen / np.linalg.norm(seen, axis=-1, keepdims=True)
    np.testing.assert_allclose(found["motion_embed"], want, atol=1e-5)

    def agreement(params):
        found = model.apply(variables | {"params": params}, audio, motion)[1]
        return (found["motion_embed"] * found["motion_audio_embed"]).sum()

    gradients = jax.grad(agreement)(params)
    for name in (*new, "q_proj", "k_proj"):
        assert np.any(gradients[name]["kernel"]), name


@pytest.mark.slow
def test_the_attention_of_the_loss_is_that_of_the_map_without_dropout():
    rng = np.random.default_rng(0)
    audio = rng.standard_normal((3, 8)).astype(np.float32)
    motion = rng.random((3, 12, 12, 2)).astype(np.float32)
    fields = dict(embed_dim=16, num_heads=2, grid=6, levels=(3,), consistency=True)
    model, rngs = AMA(**fields), {"ama_dropout": jax.random.key(1)}
    variables = model.init(jax.random.key(0), audio, motion)
    weight, found = model.apply(variables, audio, motion)
    attention = np.asarray(found["motion_attention"])
    np.testing.assert_allclose(attention.sum((1, 2)), 1, rtol=1e-5)
    low, high = (f((1, 2), keepdims=True) for f in (attention.min, attention.max))
    np.testing.assert_allclose(weight, (attention - low) / (high - low), atol=1e-4)
    cells = np.square(motion.reshape(3, 6, 2, 6, 2, 2).mean((2, 4))).sum(-1)
    np.testing.assert_allclose(found["motion_cells"], cells, rtol=1e-4)

    def train(**more):
        given = {"train": True, "rngs": rngs, "mutable": ["batch_stats"]}
        return AMA(**fields, **more).apply(variables, audio, motion, **given)[0]

    (weight, found), (other, dropped) = train(), train(attention_dropout=0.5)
    assert np.abs(weight - other).max() > 0.01
    np.testing.assert_array_equal(found["motion_attention"], dropped["motion_attention"])


@pytest.mark.parametrize("warmup, expected", [(0.2, 0.25), (0.0, 1.0), (0.04, 1.0)])
def test_the_weight_ramps_up(warmup, expected):
    class Host(nn.Module):
        @nn.compact
        def __call__(self, progress):
            ones = jnp.ones((2, 8, 8, 8))
            inputs = StageInputs(
                fields={"motion": ones[..., :1], "log_mel": jnp.ones((2, 96, 64))},
                audio=jnp.ones((2, 6, 4, 8)),
                features={},
                levels=(),
                mask_features=ones,
                valid=None,
                ids=None,
                train=False,
                progress=progress,
            )
            ama = AMA(16, 2, 4, consistency=True, consistency_warmup=warmup, name="ama")
            return STAGE.apply(ama, inputs).outputs

    outputs = Host().init_with_output(jax.random.key(0), 0.05)[0]
    np.testing.assert_allclose(outputs["motion_ramp"], np.full(2, expected), rtol=1e-6)


def test_the_step_adds_the_term():
    """Shapes only, of all kinds; off, nothing is added."""
    config = small.tiny_config()
    batch = small.train_batch(config)
    assert config.loss.consistency.kind == "contrast"

    def terms_of(consistency, kind="contrast", norms=None):
        config.model.fusion.consistency = consistency
        config.loss.consistency.kind = kind
        task = make_task(config)

        def run(batch):
            inputs = task.inputs(batch)
            outputs = task.model.init_with_output(jax.random.key(0), inputs)[0]
            return task.loss(outputs, batch, jax.random.key(1), norms and norms(task, batch))

        return jax.eval_shape(run, batch)[1]

    on, off = terms_of(True), terms_of(False)
    assert on["loss_consistency"].shape == () and set(on) - set(off) == {"loss_consistency"}
    assert set(terms_of(True, "both")) == set(on)
    assert set(terms_of(True, "map", lambda task, batch: task.norms(batch))) == set(on)
