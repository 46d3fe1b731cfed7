"""CMA against the published module, and what it must do by construction."""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax.models.fusion.cma import CMA, FIRST_STRENGTH, strength_at
from avs_jax.spec import InputError
from tests.golden.refer.weights import refer_value
from tests.golden.weights import rand_input

PUBLISHED = {"levels": ("res5",), "null_key": False, "raw_text": True, "warmup": 0.0}
CASES = {
    "single_BC": {"text_pool": "tokens"},
    "tokens_mean": {"text_pool": "mean"},
    "tokens_all": {"text_pool": "tokens"},
    "gate": {"text_pool": "tokens", "mask_gate": "prior", "tau": 0.7},
    "warmup_0.3": {"text_pool": "tokens"},
    "gamma_zero": {"text_pool": "tokens"},
}


@pytest.fixture(scope="module")
def golden():
    from tests.conftest import GOLDEN

    with np.load(GOLDEN / "refer" / "golden_cma.npz") as file:
        return dict(file)


def published_params(prefix="", gamma=None, levels=("res5",)):
    def value(name, *shape):
        return refer_value(prefix + name, shape)

    params = {
        "layers_0": {
            "norm": {"scale": value("ln.weight", 64), "bias": value("ln.bias", 64)},
            "in_proj": {
                "kernel": value("attn.in_proj_weight", 192, 64).T,
                "bias": value("attn.in_proj_bias", 192),
            },
            "out_proj": {
                "kernel": value("attn.out_proj.weight", 64, 64).T,
                "bias": value("attn.out_proj.bias", 64),
            },
            "proj": {"kernel": value("proj.weight", 64, 64).T, "bias": value("proj.bias", 64)},
        }
    }
    gamma = value("gamma_attn", 1)[0] if gamma is None else np.float32(gamma)
    return params | {f"gamma_{level}": gamma for level in levels}


def from_rule(golden, name):
    seed, shape, scale, shift = json.loads(golden["meta/json"].tobytes())["inputs"][name]
    return rand_input(seed, tuple(shape), scale, shift)


def visual(golden, name="visual"):
    return np.moveaxis(from_rule(golden, name), 1, -1)


def text_of(golden, case):
    text = from_rule(golden, "text_single" if case == "single_BC" else "text_tokens")
    text = text[:, None] if text.ndim == 2 else text
    return text, np.ones(text.shape[:2], bool)


def quick(choices, names):
    """The other choices are slow."""
    slow = pytest.mark.slow
    return [c if c in names else pytest.param(c, marks=slow) for c in choices]


@pytest.mark.parametrize("case", quick(CASES, {"tokens_all", "gate"}))
def test_the_published_module(golden, case):
    module = CMA(**PUBLISHED | CASES[case])
    params = published_params(gamma=0 if case == "gamma_zero" else None)
    if case == "warmup_0.3":
        params["gamma_res5"] = params["gamma_res5"] * np.float32(0.3)
    x, (text, mask) = visual(golden), text_of(golden, case)
    prior = from_rule(golden, "mask_logits")[:, 0] if case == "gate" else None
    weight = np.moveaxis(from_rule(golden, "loss_weight"), 1, -1)

    def loss(params, x, text):
        maps, seen = module.apply({"params": params}, {"res5": x}, text, mask, prior)
        return (maps["res5"] * weight).sum(), (maps["res5"], seen["res5"])

    grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    (_, (found, attention)), (d_params, d_x, d_text) = grad(params, x, text)
    want = np.moveaxis(golden[f"cma/{case}/out"], 1, -1)
    np.testing.assert_allclose(found, want, atol=2e-5, rtol=0)
    if case == "gamma_zero":
        np.testing.assert_array_equal(found, x)
    if case == "tokens_all":
        want = golden["cma/tokens_all/attention_head_mean"]
        np.testing.assert_allclose(attention.reshape(want.shape), want, atol=1e-6)
    want = golden[f"cma/{case}/d_text"].reshape(d_text.shape)
    np.testing.assert_allclose(d_text, want, atol=2e-4, rtol=1e-5)
    norm = golden[f"cma/{case}/d_visual_norm"]
    np.testing.assert_allclose(np.linalg.norm(d_x), norm, rtol=1e-5)
    layer = d_params["layers_0"]
    for name, value in {
        "attn.in_proj_weight": layer["in_proj"]["kernel"],
        "attn.out_proj.weight": layer["out_proj"]["kernel"],
        "proj.weight": layer["proj"]["kernel"],
        "ln.weight": layer["norm"]["scale"],
    }.items():
        want = golden[f"cma/{case}/grad_norm/{name}"]
        np.testing.assert_allclose(np.linalg.norm(value), want, atol=7e-4, rtol=2e-5, err_msg=name)


def test_the_published_module_shared_by_levels(golden):
    """What its multi-scale injection would do; its host's levels have other widths and raise."""
    levels = ("res3", "res4", "res5")  # strides 8 to 32, level0 to level2
    maps = {level: visual(golden, f"level{i}") for i, level in enumerate(levels)}
    module = CMA(**PUBLISHED | {"levels": levels})
    params = {"params": published_params(levels=levels)}
    found, _ = module.apply(params, maps, *text_of(golden, "tokens_all"))
    for i, level in enumerate(levels):
        want = np.moveaxis(golden[f"cma/multiscale_shared/level{i}_out"], 1, -1)
        np.testing.assert_allclose(found[level], want, atol=2e-5, rtol=0)
        assert np.abs(want - maps[level]).max() > 0.1


LEVELS = ("res5", "res4", "res3")


@pytest.fixture(scope="module")
def ours():
    """A module of ours with a gamma of 1, its params, maps of two widths, and text."""
    rng = np.random.default_rng(0)
    maps = {
        level: rng.standard_normal((2, 2 * 2**i, 3 * 2**i, width)).astype(np.float32)
        for i, (level, width) in enumerate(zip(LEVELS, (16, 16, 8), strict=True))
    }
    text = rng.standard_normal((2, 5, 12)).astype(np.float32)
    module = CMA(levels=LEVELS, num_heads=4, gamma_init=1.0)
    mask = np.ones((2, 5), bool)
    return module, module.init(jax.random.key(0), maps, text, mask)["params"], maps, text, mask


def change(module, params, maps, text, mask, **more):
    changed, _ = module.apply({"params": params}, maps, text, mask, **more)
    return {level: np.asarray(changed[level] - maps[level]) for level in maps}


def deviation(delta):
    return max(x.std((1, 2)).max() for x in delta.values())


def test_one_token_moves_every_cell_alike_unless_it_can_be_refused(ours):
    module, _, maps, text, mask = ours
    found = {}
    for name, fields, tokens in (
        ("one", {"null_key": False}, 1),
        ("three", {"null_key": False}, 3),
        ("one, null key", {"null_key": True}, 1),
        ("mean", {"null_key": False, "text_pool": "mean"}, 5),
    ):
        variant = module.clone(**fields)
        args = maps, text[:, :tokens], mask[:, :tokens]
        params = variant.init(jax.random.key(1), *args)["params"]
        found[name] = deviation(change(variant, params, *args))
    assert found["one"] < 1e-5 and found["mean"] < 1e-5
    assert found["three"] > 1e-2 and found["one, null key"] > 1e-2


def test_tokens_are_a_set_and_masked_ones_nothing(ours):
    module, params, maps, text, mask = ours
    base = change(*ours)
    order = [3, 1, 4, 0, 2]
    for level, x in change(module, params, maps, text[:, order], mask).items():
        np.testing.assert_allclose(x, base[level], atol=2e-6)
    hidden = mask.copy()
    hidden[:, 2] = False
    other = text.copy()
    other[:, 2] += 1
    for level in LEVELS:
        same = [change(module, params, maps, x, hidden)[level] for x in (text, other)]
        np.testing.assert_array_equal(*same)
    assert deviation(change(module, params, maps, other, mask)) > 0
    moved = change(module, params, maps, other, mask)["res5"] - base["res5"]
    assert np.abs(moved).max() > 1e-3


@pytest.mark.slow
def test_no_gradient_but_gamma_s_at_zero(ours):
    module, params, maps, text, mask = ours
    params = dict(params) | {f"gamma_{level}": jnp.zeros(()) for level in LEVELS}

    def loss(params):
        changed, _ = module.apply({"params": params}, maps, text, mask)
        return sum((x**3).sum() for x in changed.values())

    grads = jax.grad(loss)(params)
    for name, grad in grads.items():
        sizes = [float(jnp.abs(x).max()) for x in jax.tree.leaves(grad)]
        assert (max(sizes) > 0) == name.startswith("gamma_"), name
    changed, _ = module.apply({"params": params}, maps, text, mask)
    for level in LEVELS:
        np.testing.assert_array_equal(changed[level], maps[level])


@pytest.mark.parametrize("pool", quick(("mean", "cls", "attn", "topk"), {"topk"}))
def test_every_pooling_learns_and_ignores_padding(ours, pool):
    module, _, maps, text, mask = ours
    module = module.clone(text_pool=pool, top_k=2, num_layers=2, share_layers=pool == "cls")
    params = module.init(jax.random.key(2), maps, text, mask)["params"]
    longer = np.concatenate([text, np.full((2, 2, 12), 9, np.float32)], axis=1)
    wider = np.concatenate([mask, np.zeros((2, 2), bool)], axis=1)
    base, padded = (
        change(module, params, maps, text, mask),
        change(module, params, maps, longer, wider),
    )
    for level in LEVELS:
        np.testing.assert_allclose(padded[level], base[level], atol=2e-6)

    def loss(params):
        changed, _ = module.apply({"params": params}, maps, text, mask)
        return sum((x**3).sum() for x in changed.values())

    for path, grad in jax.tree_util.tree_leaves_with_path(jax.grad(loss)(params)):
        is_score_bias = "score" in str(path) and "bias" in str(path) and pool == "attn"
        assert (float(jnp.abs(grad).max()) > 0) or is_score_bias, path


def test_strength_rises_from_above_zero():
    assert float(strength_at(0.0, 0.1)) == pytest.approx(FIRST_STRENGTH)
    assert float(strength_at(0.05, 0.1)) == pytest.approx(0.5)
    assert float(strength_at(0.0, 0.0)) == pytest.approx(FIRST_STRENGTH)
    assert float(strength_at(1.0, 0.1)) == 1.0


def test_grids_and_levels_that_do_not_fit(ours):
    module, params, maps, text, mask = ours
    square = {"res5": maps["res5"][:, :2, :2]}
    fits = module.clone(levels=("res5",), grid=2)
    some = {k: v for k, v in params.items() if k not in ("gamma_res4", "gamma_res3")}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fits.apply({"params": some}, square, text, mask)
    wide = {"res5": maps["res5"]}
    with pytest.warns(UserWarning, match="made for res5 of 2 x 2 cells, not 2 x 3"):
        found, _ = fits.apply({"params": some}, wide, text, mask)
    assert found["res5"].shape == wide["res5"].shape
    with pytest.raises(InputError, match="2 x 2 cells"):
        fits.clone(on_mismatch="error").apply({"params": some}, wide, text, mask)
    with pytest.raises(InputError, match="'res4' is not one of the maps"):
        module.apply({"params": params}, wide, text, mask)
    with pytest.raises(InputError, match="needs a mask prior"):
        module.clone(mask_gate="prior").apply({"params": params}, maps, text, mask)


def test_raw_tokens_need_the_width_of_the_attention(ours):
    module, _, maps, text, mask = ours
    raw = module.clone(raw_text=True)
    with pytest.raises(InputError, match=f"hidden_dim = {text.shape[-1]} makes them equal"):
        raw.init(jax.random.key(0), maps, text, mask)
    fits = raw.clone(hidden_dim=text.shape[-1])
    assert "text_proj" not in fits.init(jax.random.key(0), maps, text, mask)["params"]


def test_bfloat16_is_finite_and_close(ours):
    module, params, maps, text, mask = ours
    exact, _ = module.apply({"params": params}, maps, text, mask)
    rough, _ = module.clone(dtype=jnp.bfloat16).apply({"params": params}, maps, text, mask)
    for level in LEVELS:
        x, y = np.asarray(rough[level], np.float32), np.asarray(exact[level])
        assert np.isfinite(x).all() and np.abs(x - y).max() / np.abs(y).max() < 2e-2
