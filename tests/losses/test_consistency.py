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


def loss_config(weight=0.5, tau=0.2):
    return types.SimpleNamespace(consistency=types.SimpleNamespace(weight=weight, tau=tau))


def a_case(seed=0):
    """Clip 1 has a still frame and clip 2 a frame without an object (a false sound)."""
    rng = np.random.default_rng(seed)
    embed = rng.standard_normal((2, B, T, E)).astype(np.float32)
    embed /= np.linalg.norm(embed, axis=-1, keepdims=True)
    energy = np.full((B, T), 0.3, np.float32)
    energy[1, 0] = 0
    masks = np.zeros((B, T, 2, 4, 4), bool)
    masks[:, :, 1, :2] = True
    labels = np.tile(np.array([0, 1], np.int32), (B, T, 1))
    valid = np.ones((B, T, 2), bool)
    valid[2, 1, 1] = False
    outputs = {
        "motion_embed": embed[0],
        "motion_audio_embed": embed[1],
        "motion_energy": energy,
        "motion_ramp": np.full((B, T), 0.4, np.float32),
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
    """Shapes only; off, nothing is added."""
    config = small.tiny_config()
    batch = small.train_batch(config)

    def terms_of(consistency):
        config.model.fusion.consistency = consistency
        task = make_task(config)

        def run(batch):
            inputs = task.inputs(batch)
            outputs = task.model.init_with_output(jax.random.key(0), inputs)[0]
            return task.loss(outputs, batch, jax.random.key(1), None)

        return jax.eval_shape(run, batch)[1]

    on, off = terms_of(True), terms_of(False)
    assert on["loss_consistency"].shape == () and set(on) - set(off) == {"loss_consistency"}
