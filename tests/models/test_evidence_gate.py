"""The gate of AMA: its formula, its start, and what it can learn from its energies alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special

from avs_jax.models.fusion.ama import AMA
from avs_jax.models.fusion.evidence_gate import EPSILON, EvidenceGate
from avs_jax.models.rules import check_rules
from avs_jax.results import segmentation
from avs_jax.spec import InputError
from avs_jax.task import stack_rows
from avs_jax.tasks import make_task
from tests import small as small_models

N, D = 6, 16


@pytest.fixture(scope="module")
def inputs():
    """(features, audio, motion, log_mel); frame 0 is still, frame 1 is silent."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((N, 4, 3, D)).astype(np.float32)
    audio = rng.standard_normal((N, D)).astype(np.float32)
    motion = rng.random((N, 8, 8, 1)).astype(np.float32)
    log_mel = rng.uniform(-3, 1, (N, 96, 64)).astype(np.float32)
    motion[0] = 0
    log_mel[1] = np.log(0.01)
    return features, audio, motion, log_mel


def test_formula(inputs):
    features, audio, motion, log_mel = (x.astype(np.float64) for x in inputs)
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: EvidenceGate().init(jax.random.key(0), *inputs))
    params = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32) / 4, shapes)
    energy = [
        np.log(np.square(motion).sum(-1).mean((1, 2)) + EPSILON),
        np.log(np.exp(log_mel).mean((1, 2))),
    ]
    x = np.concatenate([features.mean((1, 2)), audio, np.stack(energy, 1)], axis=1)
    fc1, fc2 = params["params"]["fc1"], params["params"]["fc2"]
    hidden = x @ fc1["kernel"] + fc1["bias"]
    hidden = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
    want = 2 * special.expit((hidden @ fc2["kernel"] + fc2["bias"])[:, 0] / 0.5)
    got = EvidenceGate(temperature=0.5).apply(params, *inputs)
    np.testing.assert_allclose(got, want, rtol=1e-4)
    assert np.ptp(want) > 0.1


def test_a_second_without_sound_is_silent(inputs):
    """data.short_audio = "zeros" fills its log-mel with zeros, which would be loud."""
    features, audio, motion, log_mel = inputs
    params = EvidenceGate().init(jax.random.key(0), *inputs)
    kernel = np.random.default_rng(1).standard_normal(params["params"]["fc2"]["kernel"].shape)
    params["params"]["fc2"]["kernel"] = jnp.asarray(kernel, jnp.float32)
    want = EvidenceGate().apply(params, *inputs)
    absent = log_mel.copy()
    absent[1] = 0
    got = EvidenceGate().apply(params, features, audio, motion, absent)
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("at", ["queries", "both"])
def test_it_starts_at_one_and_leaves_ama_bit_for_bit(inputs, at):
    features, audio, motion, log_mel = inputs
    small = dict(embed_dim=16, num_heads=2, grid=4, at=at)
    gated, plain = AMA(gate=True, **small), AMA(**small)
    variables = gated.init(jax.random.key(0), audio, motion, features, log_mel)
    kernel = np.random.default_rng(2).standard_normal((1, D)).astype(np.float32)
    if at == "both":
        variables["params"]["feature_proj"]["kernel"] = jnp.asarray(kernel)
    without = {k: v for k, v in variables["params"].items() if k != "gate"}
    want, expected = plain.apply(variables | {"params": without}, audio, motion, features)
    weight, found = gated.apply(variables, audio, motion, features, log_mel)
    np.testing.assert_array_equal(found["gate"], np.ones(N, np.float32))
    np.testing.assert_array_equal(weight, want)
    assert "gate" not in expected
    if at != "both":
        return
    np.testing.assert_array_equal(found["mask_features"], expected["mask_features"])
    variables["params"]["gate"]["fc2"]["bias"] = jnp.full(1, -20.0)  # closed
    _, found = gated.apply(variables, audio, motion, features, log_mel)
    np.testing.assert_allclose(found["mask_features"], features, atol=1e-6)


def test_it_learns_to_close_without_motion_or_sound(inputs):
    """Features and audio vectors are equal: only the energies tell the frames apart."""
    features, audio, motion, log_mel = inputs
    features, audio = np.ones_like(features), np.ones_like(audio)
    target = np.array([0, 0, 1, 1, 1, 1], np.float32)
    model = EvidenceGate()
    params = model.init(jax.random.key(0), features, audio, motion, log_mel)
    optimizer = optax.adam(0.02)

    def loss(params):
        gate = model.apply(params, features, audio, motion, log_mel)
        return jnp.square(gate - target).mean(), gate

    @jax.jit
    def step(params, state):
        (_, gate), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, gate

    state = optimizer.init(params)
    for _ in range(200):
        params, state, gate = step(params, state)
    assert gate[:2].max() < 0.2 and gate[2:].min() > 0.8


@pytest.mark.parametrize(
    "key, value, wanted", [("gate_temperature", 0.0, "above 0"), ("gate", "yes", "one of")]
)
def test_bad_values_are_named(key, value, wanted):
    with pytest.raises(InputError, match=f"fusion.{key} = {value!r}: expected {wanted}"):
        check_rules(AMA.RULES, {"fusion": {"name": "ama", "embed_dim": 256, key: value}})


def test_the_whole_model_returns_it():
    """Shapes only: the gate is an output per frame, with parameters below AMA's."""
    config = small_models.tiny_config()
    config.model.fusion.update(gate=True, at="both")
    batch = small_models.train_batch(config)
    task = make_task(config)
    model = task.model

    def run(batch):
        variables = model.init(jax.random.key(0), batch)
        return variables, model.apply(variables, batch)

    variables, outputs = jax.eval_shape(run, task.inputs(batch))
    assert outputs["motion_gate"].shape == batch["valid"].shape and "motion_gate" in task.outputs
    assert {"gate", "feature_proj"} <= set(variables["params"]["ama"])
    figure = segmentation.draw_clip(
        {
            "pred": np.zeros((1, 5, 32, 32), np.float32),
            "motion_gate": np.linspace(0, 1, 5, dtype=np.float32)[None],
        },
        stack_rows([task.rows.prepare(small_models.records(1)[0])], task.rows.fields),
        0,
        "gated",
        [],
    )
    assert list(figure) == ["clip0_0"]
