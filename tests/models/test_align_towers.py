"""CLIP's towers and AST: stages, embeddings, losses and gradients of the published code."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from scipy import ndimage

from avs_jax.convert.clip_names import clip_names, clip_rules
from avs_jax.convert.rules import apply_rules, invert_rules
from avs_jax.losses.alignment import infonce, scale_of
from avs_jax.models import build_model, clip_encoders
from avs_jax.models.align import Align
from avs_jax.models.backbones.ast import AST
from avs_jax.models.backbones.clip_vit import CLIPViT
from avs_jax.models.text.clip_text import CLIPText
from avs_jax.spec import InputError
from configs import align_swin, s4_vct
from tests.cases_golden import arrays, assert_golden, meta, state_dict
from tests.golden.compare import shapes_of

VISION = {
    "patch_size": 16,
    "image_size": 64,
    "hidden_dim": 48,
    "num_layers": 3,
    "num_heads": 4,
    "ffn_dim": 96,
}
TEXT = {
    "vocab_size": 120,
    "max_positions": 20,
    "hidden_dim": 32,
    "num_layers": 2,
    "num_heads": 4,
    "ffn_dim": 64,
    "eos_id": 100,
}
CONFIG = {
    "pairs": "vt",
    "embed_dim": 24,
    "backbone": {"name": "clip_vit"} | VISION,
    "text": {"name": "clip"} | TEXT,
}


def model(pooling="eos", activation="quick_gelu"):
    config = CONFIG | {"backbone": CONFIG["backbone"] | {"activation": activation}}
    config["text"] = CONFIG["text"] | {"activation": activation, "pooling": pooling}
    return build_model(config, Align)


def clip_batch():
    """Images are given normalized, so they are brought back to pixels."""
    golden = arrays("clip")
    pixels = np.moveaxis(golden["in/pixel_values"], 1, -1)
    pixels = pixels * np.float32(CLIPViT.PIXEL_STD) + np.float32(CLIPViT.PIXEL_MEAN)
    return {
        "images": pixels[:, None],
        "text_ids": golden["in/ids"][:, None].astype(np.int32),
        "text_mask": golden["in/mask"][:, None] > 0,
    }


@functools.cache
def params():
    shapes = shapes_of(jax.eval_shape(model().init, jax.random.key(0), clip_batch())["params"])
    flat = apply_rules(state_dict("clip", "clip"), clip_rules(), shapes)
    return traverse_util.unflatten_dict(flat, sep="/")


def run(module, tree, *args):
    """The result, and what the module collected."""

    def apply(tree, *args):
        steps = {}
        return module.apply({"params": tree}, *args, collect=steps), steps

    return jax.jit(apply)(tree, *args)


def test_vision_stages():
    images = np.moveaxis(arrays("clip")["in/pixel_values"], 1, -1)
    _, steps = run(CLIPViT(**VISION), params()["backbone"], images)
    names = {"pre_norm": "pre_layrnorm"}
    for name, value in steps.items():
        assert_golden("clip", f"vision/{names.get(name, name)}", value)
    assert len(steps) == 6


def test_positions_of_other_sizes():
    images = np.moveaxis(arrays("clip")["in/pixel_interp"], 1, -1)
    _, steps = run(CLIPViT(**VISION), params()["backbone"], images)
    for name in ("embeddings", "pooled"):
        assert_golden("clip", f"vision_interp/{name}", steps[name])


@pytest.mark.parametrize("case", ["nomask", "ragged", "left"])
def test_text_stages_and_both_poolings(case):
    golden = arrays("clip")
    ids = golden["in/ids_left" if case == "left" else "in/ids"].astype(np.int32)
    mask = {
        "nomask": None,
        "ragged": golden["in/mask"] > 0,
        "left": golden["in/mask_left"] > 0,
    }[case]
    for pooling in ("eos", "argmax"):
        _, steps = run(CLIPText(**TEXT, pooling=pooling), params()["text"], ids, mask)
        assert_golden("clip", f"text_{pooling}/{case}/pooled", steps["pooled"])
    steps["emb"] = steps["embeddings"]
    for name in ("emb", "layer0", "layer1", "last"):
        if f"text/{case}/{name}" in golden:
            # Behind a mask on the left, the first tokens see nothing and are undefined.
            exists = mask if case == "left" else np.ones(ids.shape, bool)
            assert_golden("clip", f"text/{case}/{name}", np.array(steps[name])[exists], exists)


@pytest.mark.parametrize("pooling", ["eos", pytest.param("argmax", marks=pytest.mark.slow)])
def test_logits_loss_and_gradients(pooling):
    names = clip_names(CONFIG)

    def loss(tree):
        out = model(pooling).apply({"params": tree}, clip_batch())
        similarity, scale = out["frames_embed"] @ out["text_embed"].T, scale_of(out["logit_scale"])
        both = infonce(similarity, scale), infonce(similarity.T, scale)
        return sum(both) / 2, (similarity * scale, both, out)

    (total, (logits, both, out)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params())
    key = f"clip_{pooling}/"
    assert_golden("clip", f"{key}logits_per_image", logits)
    assert_golden("clip", f"{key}logits_per_text", logits.T)
    for name, value in zip(("loss", "loss_i2t", "loss_t2i"), (total, *both), strict=True):
        assert_golden("clip", key + name, value)
    assert_golden("clip", f"text_{pooling}/ragged/embeds", out["text_embed"])
    assert_golden("clip", "vision/embeds", out["frames_embed"])
    grads = traverse_util.flatten_dict(grads, sep="/")
    theirs = invert_rules(grads, clip_rules(), names)
    assert names == [name for name, _ in meta("clip")["models"]["clip"]["names"]]
    order = meta("clip")["models"]["clip"]["grad_norm_names"]
    norms = np.array([np.linalg.norm(theirs[name].astype(np.float64)) for name in order])
    assert_golden("clip", f"{key}grad_norms", norms)
    stored = [name for name in arrays("clip") if name.startswith(f"{key}grad/")]
    for name in stored:
        assert_golden("clip", name, theirs[name.removeprefix(f"{key}grad/")])
    assert len(stored) == (6 if pooling == "eos" else 0)


@pytest.mark.slow
def test_exact_gelu():
    out = jax.jit(model(activation="gelu").apply)({"params": params()}, clip_batch())
    logits = scale_of(out["logit_scale"]) * out["frames_embed"] @ out["text_embed"].T
    assert_golden("clip", "clip_gelu/logits_per_image", logits)


def test_zero_shot_classes_are_means_of_prompts():
    golden = arrays("clip")
    ids = golden["in/zs_ids"].astype(np.int32)
    assert ids.ndim == 3
    batch = clip_batch()
    texts = build_model(CONFIG, Align)
    five = {"images": batch["images"][:5], "text_ids": ids, "text_mask": np.ones(ids.shape, bool)}
    out = jax.jit(texts.apply)({"params": params()}, five)
    assert_golden("clip", "zs/class_embeds", out["text_embed"])
    six = jax.jit(model().apply)({"params": params()}, batch)["frames_embed"]
    logits = scale_of(out["logit_scale"]) * six @ out["text_embed"].T
    assert_golden("clip", "zs/logits", logits)
    assert_golden("clip", "zs/probs", jax.nn.softmax(logits, axis=-1))
    np.testing.assert_array_equal(logits.argmax(1), golden["zs/argmax"])


def ast_params():
    """The golden weights by hand: no published file has this front end's 96 x 64 examples."""
    state, tree = state_dict("clip", "ast"), {}
    tree["tokens"] = np.concatenate(
        [state.pop(f"embeddings.{name}_token")[0] for name in ("cls", "distillation")]
    )
    tree["position_embedding"] = state.pop("embeddings.position_embeddings")[0]
    tree["patch_embedding"] = np.transpose(
        state.pop("embeddings.patch_embeddings.projection.weight"), (2, 3, 1, 0)
    )
    tree["patch_bias"] = state.pop("embeddings.patch_embeddings.projection.bias")
    places = {f"attention.{x[0]}_proj": f"attention/{x}" for x in ("query", "key", "value", "out")}
    places |= {"layernorm_before": "norm1", "layernorm_after": "norm2"}
    places |= {"mlp.fc1": "mlp/fc1", "mlp.fc2": "mlp/fc2"}
    for name, value in state.items():
        stem, kind = name.rsplit(".", 1)
        leaf = "bias" if kind == "bias" else "kernel" if value.ndim == 2 else "scale"
        if stem == "layernorm":
            tree[f"norm/{leaf}"] = value
        else:
            _, layer, part = stem.split(".", 2)
            tree[f"layers_{layer}/{places[part]}/{leaf}"] = value.T
    return traverse_util.unflatten_dict(tree, sep="/")


def test_ast_stages_and_gradients():
    module = AST(hidden_dim=32, num_layers=2, num_heads=4, ffn_dim=64)
    mel, tree = arrays("clip")["in/ast_mel"], ast_params()
    shapes = shapes_of(jax.eval_shape(module.init, jax.random.key(0), mel)["params"])
    assert shapes == shapes_of(tree)
    _, steps = run(module, tree, mel)
    names = {"last": "last_hidden_state"}
    for name, value in steps.items():
        assert_golden("clip", f"ast/{names.get(name, name)}", value)
    assert len(steps) == 5
    squares = jax.jit(jax.grad(lambda t: jnp.square(module.apply({"params": t}, mel)).sum()))
    grads = traverse_util.flatten_dict(squares(tree), sep="/")
    norms = np.sort([np.linalg.norm(np.float64(g)) for k, g in grads.items() if k != "tokens"])
    tokens = [np.linalg.norm(np.float64(row)) for row in grads["tokens"]]
    noise, largest = meta("clip")["noise"]["ast/grad_norms"]
    np.testing.assert_allclose(
        np.sort([*norms, *tokens]),
        np.sort(arrays("clip")["ast/grad_norms"]),
        rtol=0,
        atol=10 * noise + 1e-6 * largest,
    )


def test_levels_are_projected_and_added(monkeypatch):
    rng = np.random.default_rng(0)
    shapes = {"res4": (2, 4, 4, 16), "res5": (2, 2, 2, 32)}
    maps = {level: rng.normal(size=shape).astype(np.float32) for level, shape in shapes.items()}
    heard = rng.normal(size=(2, 12)).astype(np.float32)
    found = {"backbone": maps, "audio_backbone": heard}
    monkeypatch.setattr(clip_encoders, "make_part", lambda *_, name, **__: lambda *_: found[name])
    config = align_swin.get_config("tiny").model.to_dict()
    batch = {
        "images": np.zeros((1, 2, 64, 64, 3), np.uint8),
        "log_mel": np.zeros((1, 2, 96, 64), np.float32),
    }
    out, state = build_model(config, Align).init_with_output(jax.random.key(0), batch)
    kernels = {
        name: np.asarray(x["kernel"]) for name, x in state["params"].items() if "pro" in name
    }

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    fine = maps["res4"] @ kernels["frames_projection_res4"]
    coarse = maps["res5"] @ kernels["frames_projection"]
    vectors = fine.mean((1, 2)) + coarse.mean((1, 2))
    np.testing.assert_allclose(out["frames_seconds"][0], unit(vectors), atol=2e-6)
    cells = unit(fine + ndimage.zoom(coarse, (1, 2, 2, 1), order=1, mode="nearest", grid_mode=True))
    wanted = np.einsum("thwd,td->thw", cells, unit(heard @ kernels["audio_projection"]))
    np.testing.assert_allclose(out["sound_map"][0], wanted, atol=2e-6)
    for levels in (("res6",), ("res5", "res5"), "res5", ()):
        with pytest.raises(InputError, match="model.levels = .*: expected any of"):
            build_model(config | {"levels": levels}, Align)


def test_the_other_models_refuse_towers_without_maps():
    config = s4_vct.get_config("tiny")
    config.model.backbone = {"name": "clip_vit"}
    with pytest.raises(InputError, match="model.backbone.name = 'clip_vit': expected one of"):
        build_model(config.model)
    with pytest.raises(InputError, match="model.pairs = 'av': expected pairs of towers"):
        build_model(CONFIG | {"pairs": "av"}, Align)
