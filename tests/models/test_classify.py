"""Fusion of frames and sound: the example's numbers, masks, and what each fusion can express."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from avs_jax.losses.classification import class_loss
from avs_jax.models import build_model
from avs_jax.models.backbones.clip_vit import CLIPViT
from avs_jax.models.classify import FUSIONS, Classify, FusionClassifier, drop_modalities
from avs_jax.models.fusion.clip_fusion import ClipTokens
from avs_jax.spec import InputError
from configs import classify_generated, parts
from tests.cases_golden import arrays, assert_golden, state_dict

KINDS = {"early": "early", "late": "late_feature", "attention": "attention"}
PLACES = {
    "visual_encoder.0": "frames_encoder",
    "audio_encoder.0": "audio_encoder",
    "fusion.0": "fusion/fusion",
    "attention.0": "fusion/attention",
    "classifier": "classifier",
}


def head_of(kind, **sizes):
    sizes = {"num_classes": 5, "hidden_dim": 16} | sizes
    return FusionClassifier(fusion=kind, **sizes)


def random_params(head, frames, audio, seed=0):
    present = jnp.ones((len(frames), 2), bool)
    return head.init(jax.random.key(seed), ClipTokens(frames, audio, present))["params"]


def golden_params(name, head, frames, audio):
    """Golden weights where the example has them; zeros for the classifiers it does not have."""
    shapes = jax.eval_shape(lambda: random_params(head, frames, audio))
    flat = {k: jnp.zeros(x.shape) for k, x in traverse_util.flatten_dict(shapes, sep="/").items()}
    for entry, value in state_dict("fusion_seed", name).items():
        stem, kind = entry.rsplit(".", 1)
        path = f"{PLACES[stem]}/{'kernel' if kind == 'weight' else 'bias'}"
        assert flat[path].shape == value.T.shape
        flat[path] = jnp.asarray(value.T)
    return traverse_util.unflatten_dict(flat, sep="/")


@pytest.mark.parametrize(
    "name", ["attention", *(pytest.param(n, marks=pytest.mark.slow) for n in ("early", "late"))]
)
def test_fusions_of_the_example(name):
    golden = arrays("fusion_seed")
    v, a = (jnp.asarray(golden[f"in/{key}"])[:, None] for key in ("visual", "audio"))
    head, present = head_of(KINDS[name]), jnp.ones((6, 2), bool)
    params = golden_params(name, head, v, a)
    onehot = jnp.eye(5)[golden["in/labels"]]

    @jax.jit
    def run(params, v, a):
        return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(params, v, a)

    def loss(params, v, a):
        found = head.apply({"params": params}, ClipTokens(v, a, present))
        return class_loss(found["logits"], onehot, False).mean(), found

    (value, found), grads = run(params, v, a)
    assert_golden("fusion_seed", f"{name}/logits", found["logits"])
    assert_golden("fusion_seed", f"{name}/loss", value)
    assert_golden("fusion_seed", f"{name}/grad_visual", grads[1][:, 0])
    assert_golden("fusion_seed", f"{name}/grad_audio", grads[2][:, 0])
    gradient = grads[0]["classifier"]["kernel"].T
    assert_golden("fusion_seed", f"{name}/grad/classifier.weight", gradient)
    silent, black = (run(params, v * k, a * (1 - k))[0][1]["logits"] for k in (1, 0))
    assert_golden("fusion_seed", f"{name}/logits_silent", silent)
    assert_golden("fusion_seed", f"{name}/logits_black", black)
    if name == "attention":
        weights = found["modality_weights"][..., None]
        assert_golden("fusion_seed", "attention/weights", weights)
        np.testing.assert_allclose(found["modality_weights"].sum(1), 1, atol=1e-6)


@pytest.mark.parametrize(
    "alpha", [0.3, *(pytest.param(a, marks=pytest.mark.slow) for a in (0.0, 1.0))]
)
def test_late_logit_mixes_two_classifiers(alpha):
    golden = arrays("fusion_seed")
    v, a = (jnp.asarray(golden[f"in/{key}"])[:, None] for key in ("visual", "audio"))
    head, present = head_of("late_logit"), jnp.ones((6, 2), bool)
    state = state_dict("fusion_seed", "attention")
    params = random_params(head, v, a)
    for name, old in (("frames_encoder", "visual_encoder.0"), ("audio_encoder", "audio_encoder.0")):
        params[name] = {"kernel": state[f"{old}.weight"].T, "bias": state[f"{old}.bias"]}
    weight, bias = state["classifier.weight"], state["classifier.bias"]
    params["frames_classifier"] = {"kernel": weight.T, "bias": bias}
    params["audio_classifier"] = {"kernel": weight[::-1].T, "bias": bias[::-1]}
    params["balance"] = jnp.log(jnp.float32(alpha)) - jnp.log1p(-jnp.float32(alpha))
    found = head.apply({"params": params}, ClipTokens(v, a, present))
    assert_golden("fusion_seed", f"late_logit/alpha{alpha}", found["logits"])
    if alpha == 1:
        np.testing.assert_array_equal(found["logits"], found["frames_logits"])
    silent = ClipTokens(v, a, jnp.array([[True, False]] * 6))
    alone = head.apply({"params": params}, silent)
    if alpha == 0.3:  # the weights are renormalized
        np.testing.assert_allclose(alone["logits"], alone["frames_logits"], atol=1e-6)


def test_sizes_of_the_example():
    def count(kind):
        head = head_of(kind, num_classes=10, hidden_dim=512)
        v, a = jnp.zeros((1, 1, 2048)), jnp.zeros((1, 1, 128))
        shapes = jax.eval_shape(lambda: random_params(head, v, a))
        ours = {k: sum(x.size for x in jax.tree.leaves(tree)) for k, tree in shapes.items()}
        extra = ours.pop("frames_classifier") + ours.pop("audio_classifier")
        assert extra == 2 * 5130 and ours["frames_encoder"] == 1_049_088
        assert ours["audio_encoder"] == 66_048
        return sum(ours.values())

    assert count("early") == 1_645_066
    assert count("late_feature") == 1_120_266
    assert count("attention") == 1_120_779


@pytest.mark.parametrize(
    "kind",
    [k if k == "attention" else pytest.param(k, marks=pytest.mark.slow) for k in FUSIONS],
)
def test_what_is_missing_changes_nothing(kind):
    rng = np.random.default_rng(0)
    v, a, other = (jnp.asarray(rng.standard_normal((3, 4, 8)), jnp.float32) for _ in range(3))
    head = head_of(kind, num_heads=2)
    params = random_params(head, v, a, seed=1)
    if kind == "film":
        modulation = params["fusion"]["modulation"]
        modulation["kernel"] = 0.3 * jax.random.normal(jax.random.key(2), (16, 32))
    mask = jnp.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], bool)

    def run(v, a, present):
        present = jnp.array([present] * 3, bool)
        return head.apply({"params": params}, ClipTokens(v, a, present, mask, mask))

    both = run(v, a, (True, True))
    for present, changed in (((True, False), (v, other)), ((False, True), (other, a))):
        once, again = run(v, a, present), run(*changed, present)
        np.testing.assert_array_equal(once["logits"], again["logits"])
        assert np.abs(once["logits"] - both["logits"]).max() > 1e-3
        np.testing.assert_allclose(once["modality_weights"], np.float32([present] * 3), atol=1e-6)
    np.testing.assert_allclose(both["modality_weights"].sum(1), 1, atol=1e-6)
    padded = run(jnp.where(mask[..., None], v, 9.0), jnp.where(mask[..., None], a, -9.0), (1, 1))
    np.testing.assert_allclose(padded["logits"], both["logits"], atol=1e-5)


def test_modality_dropout_hides_one_of_two():
    present = jnp.array([[True, True]] * 4000 + [[True, False]] * 10)
    found = drop_modalities(jax.random.key(0), present, 0.2)
    assert found.any(1).all() and (found[4000:] == present[4000:]).all()
    hidden = 1 - found[:4000].mean(0)
    np.testing.assert_allclose(hidden, 0.1, atol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["early", "cross", "late_logit"])
def test_only_a_joint_fusion_solves_xor(kind):
    """The class is (shape XOR tone): no sum of two scores can say it."""
    rng = np.random.default_rng(1)
    shape, tone = rng.integers(0, 2, (2, 512))
    v, a = (
        np.float32(2 * bits[:, None] - 1 + 0.3 * rng.standard_normal((512, 8)))[:, None]
        for bits in (shape, tone)
    )
    onehot = jnp.eye(2)[shape ^ tone]
    head, present = head_of(kind, num_classes=2, hidden_dim=32), jnp.ones((512, 2), bool)
    params = random_params(head, v, a, seed=3)
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(params, state):
        def loss(params):
            found = head.apply({"params": params}, ClipTokens(v[:256], a[:256], present[:256]))
            return class_loss(found["logits"], onehot[:256], False).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(300):
        params, state = step(params, state)
    held_out = ClipTokens(v[256:], a[256:], present[256:])
    logits = head.apply({"params": params}, held_out)["logits"]
    accuracy = float((logits.argmax(1) == onehot[256:].argmax(1)).mean())
    assert accuracy <= 0.6 if kind == "late_logit" else accuracy >= 0.95


def test_exactly_one_tower_of_frames():
    config = classify_generated.get_config("tiny")
    with config.unlocked():
        del config.model["backbone"]
    with pytest.raises(InputError, match="model.backbone or model.timesformer"):
        build_model(config.model, Classify)
    config = classify_generated.get_config("tiny")
    config.model.av_fusion = "sum"
    with pytest.raises(InputError, match="model.av_fusion = 'sum': expected one of"):
        build_model(config.model, Classify)


def test_images_are_normalized_as_their_backbone_wants_them():
    """Where all pixels have CLIP's mean, what the patches are projected with does not matter."""
    config = classify_generated.get_config("tiny")
    config.model.backbone = parts.clip_vit(16)
    sizes = {"image_size": 32, "hidden_dim": 8, "num_layers": 1, "num_heads": 2, "ffn_dim": 16}
    config.model.backbone.update(sizes)
    model = build_model(config.model, Classify)
    batch = {
        "images": jnp.broadcast_to(jnp.asarray(CLIPViT.PIXEL_MEAN), (1, 2, 32, 32, 3)),
        "log_mel": jnp.zeros((1, 2, 96, 64)),
    }
    variables = jax.jit(model.init)(jax.random.key(0), batch)
    flat = traverse_util.flatten_dict(variables, sep="/")
    flat["params/backbone/patch_embedding"] += jnp.arange(8.0)[None, None, None]
    changed = traverse_util.unflatten_dict(flat, sep="/")
    logits, same = (jax.jit(model.apply)(v, batch)["logits"] for v in (variables, changed))
    np.testing.assert_allclose(logits, same, atol=1e-4)
