"""The model with an expression: a loaded model's masks, prompts, and what must not enter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax.models import build_model
from avs_jax.runtime.optim import flatten, unflatten
from avs_jax.spec import InputError
from configs import parts, refer_cma
from tests.small import tiny_config


def with_text(**decoder):
    """config.model of the tiny recipe, that of `tiny_config` with text."""
    config = tiny_config("none").model
    other = refer_cma.get_config("tiny").model
    config.text, config.head, config.fusion = other.text, other.head, parts.cma()
    config.fusion.num_heads = 2
    config.decoder.update(decoder)
    return config


def batch(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "images": rng.integers(0, 256, (1, 2, 32, 32, 3), dtype=np.uint8),
        "log_mel": rng.standard_normal((1, 2, 96, 64)).astype(np.float32),
        "text_ids": np.array([[0, 7, 9, 4, 2, 1]], np.int32),
        "text_mask": np.array([[1, 1, 1, 1, 1, 0]], bool),
    }


def draw(model, seed=3):
    """Random variables without compiling an initialization."""
    tree = jax.eval_shape(model.init, jax.random.key(0), batch())["params"]
    rng = np.random.default_rng(seed)
    drawn = {}
    for path, x in flatten(tree).items():
        center = 1.0 if path.endswith("scale") and x.ndim else 0.0
        drawn[path] = (center + 0.2 * rng.standard_normal(x.shape)).astype(np.float32)
    return drawn


def masks(model, params, inputs):
    @jax.jit
    def apply(params, inputs):
        outputs = model.apply({"params": params}, inputs)
        return outputs["pred_masks"], outputs["pred_logits"], outputs.get("presence_logits")

    return apply(unflatten(params), inputs)


@pytest.fixture(scope="module")
def model():
    return build_model(with_text(prompt="none"))


@pytest.fixture(scope="module")
def params(model):
    return draw(model)


def test_gamma_zero_keeps_a_loaded_model_s_masks_bit_for_bit(model, params):
    inputs = batch()
    plain = build_model(tiny_config("none").model)
    loaded = {p: x for p, x in params.items() if not p.startswith(("text/", "cma/", "head/"))}
    want = masks(plain, loaded, {k: inputs[k] for k in ("images", "log_mel")})
    closed = params | {p: np.float32(0) for p in params if p.startswith("cma/gamma_")}
    found = masks(model, closed, inputs)
    for x, y in zip(found[:2], want[:2], strict=True):
        np.testing.assert_array_equal(x, y)
    opened = params | {p: np.float32(1) for p in params if p.startswith("cma/gamma_")}
    assert np.abs(masks(model, opened, inputs)[0] - want[0]).max() > 1e-2


@pytest.mark.slow
def test_expressions_of_a_clip_share_its_images_and_sound(model, params):
    clips, words = batch(1), np.array([[0, 7, 9, 4, 2, 1], [0, 3, 8, 2, 1, 1]], np.int32)
    several = clips | {"text_ids": words, "text_mask": words != 1}
    found = masks(model, params, several)
    for i in range(2):
        alone = {name: several[name][i : i + 1] for name in ("text_ids", "text_mask")}
        for x, y in zip(found, masks(model, params, clips | alone), strict=True):
            np.testing.assert_allclose(x[i : i + 1], y, atol=2e-5 * np.abs(y).max())
    outputs = jax.eval_shape(model.apply, {"params": unflatten(params)}, several)
    seen = outputs["intermediates"]
    assert seen["backbone"]["res5"].shape[0] == seen["audio_features"].shape[0] == 2  # T frames
    assert seen["decoder"]["ffn"][-1].shape[0] == 4
    uneven = {name: np.repeat(clips[name], 2, axis=0) for name in ("images", "log_mel")}
    words = {name: np.repeat(clips[name], 3, axis=0) for name in ("text_ids", "text_mask")}
    with pytest.raises(ValueError, match="3 expressions for 2 clips: expected the same number"):
        model.apply({"params": unflatten(params)}, uneven | words)


def test_words_move_masks_and_presence_and_padding_does_not(model, params):
    base, inputs = masks(model, params, batch()), batch()
    inputs["text_ids"] = np.array([[0, 7, 9, 4, 2, 5]], np.int32)  # under the mask
    for x, y in zip(masks(model, params, inputs), base, strict=True):
        np.testing.assert_array_equal(x, y)
    inputs["text_ids"][0, 1] = 11
    for x, y in zip(masks(model, params, inputs)[::2], base[::2], strict=True):
        assert np.abs(x - y).max() > 1e-3


@pytest.mark.parametrize("prompt", ["concat", pytest.param("gated", marks=pytest.mark.slow)])
def test_prompts_reach_the_decoder(prompt):
    config = with_text(prompt=prompt)
    config.fusion = parts.absent()
    model = build_model(config)
    params, inputs = draw(model), batch()
    names = {p.split("/")[1] for p in params if p.startswith("predictor/text_")}
    assert names == {"text_prompt", "text_embed"} | ({"text_gate"} if prompt == "gated" else set())
    base = masks(model, params, inputs)[0]
    inputs["text_ids"] = np.array([[0, 7, 9, 4, 2, 5]], np.int32)
    np.testing.assert_allclose(masks(model, params, inputs)[0], base, atol=1e-5)
    inputs["text_ids"][0, 1] = 11
    assert np.abs(masks(model, params, inputs)[0] - base).max() > 1e-4


@pytest.mark.slow
def test_the_mask_prior_has_not_seen_the_text():
    config = with_text(prompt="none", num_layers=2)  # the second one reads res5
    config.fusion.update(mask_gate="prior", levels=("res5",))
    model = build_model(config)
    params = draw(model)

    def loss(params, inputs):
        outputs = model.apply({"params": unflatten(params)}, inputs)
        return jnp.square(outputs["pred_masks"]).sum()

    value, grads = jax.jit(jax.value_and_grad(loss))(params, batch())
    assert np.isfinite(value)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))
    inputs = batch()
    inputs["text_ids"][0, 1] = 11
    assert not np.allclose(jax.jit(loss)(params, inputs), value)


@pytest.mark.slow
def test_the_localizer_reads_words_and_sound_and_gates_the_words():
    config = with_text(prompt="none")
    config.localizer = parts.text_to_pixel()
    config.localizer.update(embed_dim=8, num_heads=2)
    config.fusion.update(mask_gate="located", levels=("res2",))
    model = build_model(config)
    params = draw(model)
    params["localizer/bias"] = np.float32(-1)
    trust = {
        f"predictor/location_embed/{x}": 0 * params[f"predictor/location_embed/{x}"]
        for x in ("kernel", "bias")
    }
    trusting, params = params, params | trust

    @jax.jit
    def apply(params, inputs):
        outputs = model.apply({"params": unflatten(params)}, inputs)
        return outputs["location_logits"], outputs["pred_masks"]

    inputs = batch()
    own, masks_of_own = apply(params, inputs)
    assert own.shape == (1, 2, 1, 4, 4)
    other = {**inputs, "text_ids": inputs["text_ids"][:, ::-1]}
    mean = apply(params, {**inputs, "log_mel": inputs["log_mel"] + 1})[0]
    assert jnp.abs(apply(params, other)[0] - own).max() > 1e-3
    assert jnp.abs(mean - own).max() > 1e-3  # the words have heard the sound
    ids = jnp.stack([inputs["text_ids"], other["text_ids"]], axis=1)
    phrases = {"phrase_ids": ids, "phrase_mask": jnp.stack([inputs["text_mask"]] * 2, axis=1)}
    phrases |= {"clip_log_mel": inputs["log_mel"], "clip_has_sound": np.ones((1, 2), bool)}
    both, masks_of_both = apply(params, inputs | phrases)
    assert both.shape == (1, 2, 2, 4, 4)
    np.testing.assert_allclose(both[:, :, :1], own, atol=1e-5)
    np.testing.assert_allclose(masks_of_both, masks_of_own, atol=1e-4)
    # Training may ask for the masks of several of them, as prediction does.
    asked = {"asked_ids": ids, "asked_mask": phrases["phrase_mask"]}
    found, masks_of_asked = apply(params, inputs | phrases | asked)
    np.testing.assert_allclose(found, both, atol=1e-5)
    several = {"text_ids": ids[0], "text_mask": phrases["phrase_mask"][0]}
    found, masks_of_several = apply(params, inputs | several)
    np.testing.assert_allclose(found[:, :, 0], jnp.moveaxis(both[0], 1, 0), atol=1e-5)
    assert masks_of_asked.shape[0] == 2
    np.testing.assert_allclose(masks_of_asked, masks_of_several, atol=1e-4)
    np.testing.assert_allclose(masks_of_asked[:1], masks_of_own, atol=1e-4)
    # A frame hears the seconds of its clip that exist, in training and in evaluation.
    first = {"valid": np.array([[True, False]])}
    alone, _ = apply(params, inputs | first)
    assert jnp.abs(alone - own)[:, 0].max() > 1e-4
    phrases["clip_has_sound"] = first["valid"]
    np.testing.assert_allclose(apply(params, inputs | phrases)[0][:, :, :1], alone, atol=1e-5)
    phrases["clip_seconds"] = np.array([[0, 1]])
    np.testing.assert_allclose(apply(params, inputs | phrases)[0][:, :, :1], alone, atol=1e-5)
    phrases["clip_seconds"] = np.array([[4, 1]])  # the first second is the fifth of its clip
    assert jnp.abs(apply(params, inputs | phrases)[0][:, :, :1] - alone).max() > 1e-4
    closed, _ = apply(params | {"localizer/bias": np.float32(-200)}, inputs)
    assert closed.max() < -100
    shut = apply(params | {"localizer/bias": np.float32(-200)}, inputs)[1]
    only_marks = params | {"cma/gamma_res2": np.float32(0)}
    nothing = only_marks | {"cma/mark_res2": np.zeros_like(params["cma/mark_res2"])}
    without, marked = (apply(p, inputs)[1] for p in (nothing, only_marks))
    np.testing.assert_array_equal(shut, without)
    assert jnp.abs(marked - without).max() > 1e-3
    assert jnp.abs(masks_of_own - marked).max() > 1e-3
    direct = apply(nothing | {name: trusting[name] for name in trust}, inputs)[1]
    assert jnp.abs(direct - without).max() > 1e-3


@pytest.mark.parametrize(
    "prompt, gate, pool",
    [
        ("concat", "located", "tokens"),
        pytest.param("gated", "prior", "topk", marks=pytest.mark.slow),
    ],
)
def test_training_and_inference_have_the_same_features(prompt, gate, pool):
    """With drop path and the noise of the queries at 0: nothing else is random, as no rng says."""
    config = with_text(prompt=prompt)
    config.fusion.update(mask_gate=gate, text_pool=pool)
    if gate == "located":
        config.localizer = parts.text_to_pixel()
        config.localizer.update(embed_dim=8, num_heads=2)
    config.backbone.drop_path_rate = 0.0
    model = build_model(config)
    params, inputs = draw(model), batch()
    noise = np.zeros((2, config.num_queries, 8 * 8), np.float32)

    @functools.partial(jax.jit, static_argnames="train")
    def apply(params, inputs, noise, train):
        return model.apply(
            {"params": unflatten(params)}, inputs, train, progress=1.0, gumbel_noise=noise
        )

    trained, inferred = (apply(params, inputs, n, train=n is not None) for n in (noise, None))
    seen = trained["intermediates"]
    assert {"backbone", "cma", "pixel_decoder", "decoder"} <= seen.keys()
    found = jax.tree.leaves_with_path(trained)
    wanted = dict(jax.tree.leaves_with_path(inferred))
    assert dict(found).keys() == wanted.keys()
    for path, x in found:
        want = np.asarray(wanted[path], np.float32)
        atol = 1e-5 * max(1, np.abs(want).max(initial=0))
        np.testing.assert_allclose(x, want, atol=atol, err_msg=jax.tree_util.keystr(path))
    # and they depend on the words, in both
    inputs["text_ids"][0, 1] = 11
    other = apply(params, inputs, None, train=False)
    assert jnp.abs(other["pred_masks"] - inferred["pred_masks"]).max() > 1e-3


def test_a_gate_without_a_localizer_is_named():
    config = with_text(prompt="none")
    config.fusion.mask_gate = "located"
    with pytest.raises(InputError, match="mask_gate = 'located' needs a localizer"):
        jax.eval_shape(build_model(config).init, jax.random.key(0), batch())


def test_text_without_an_encoder_is_named():
    config = with_text(prompt="none")
    config.text = parts.absent()
    with pytest.raises(InputError, match="fusion.name = 'cma' reads text"):
        jax.eval_shape(build_model(config).init, jax.random.key(0), batch())
    config = with_text(prompt="every")
    with pytest.raises(InputError, match="decoder.prompt = 'every'"):
        build_model(config)
    with pytest.raises(ValueError, match="no text_ids, text_mask"):
        inputs = {k: v for k, v in batch().items() if not k.startswith("text")}
        jax.eval_shape(build_model(with_text(prompt="none")).init, jax.random.key(0), inputs)
