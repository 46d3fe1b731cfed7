"""Gated fusion: avigate, custom and b0 as in the originals, masked pooling, closed gates.

The stored arrays call them famA, famB and famB0.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from avs_jax.convert.ground_names import _custom, qd_detr_rules
from avs_jax.convert.rules import invert_rules
from avs_jax.models.attention import Attention, attend
from avs_jax.models.fusion.avigate import AvigateFusion
from avs_jax.models.fusion.gated import FAMILIES, GateConfig, GatedFusion, Gates, make_gate_config
from avs_jax.models.layers import LayerNorm
from avs_jax.spec import InputError
from tests.golden.compare import shapes_of
from tests.ground_golden import (
    SCALARS,
    arrays,
    assert_golden,
    avigate_rules,
    fill,
    golden_model,
    golden_params,
    inputs,
    noise,
)

META = json.loads(str(arrays("gates")["meta/json"]))
KINDS = [
    path.removesuffix("/fused")
    for path in arrays("gates")
    if path.startswith("famB") and path.endswith("/fused") and "alone" not in path
]
MODELS = [path.split("/")[1] for path in arrays("gates") if path.endswith("out/pred_spans")]
MODELS = sorted({kind for kind in MODELS if kind != "fixed"})
STARTS = {  # of the reference's flags -> its entries
    "mha_bias_init": "mha_bias",
    "mha_scale_init": "mha_scale",
    "ffn_alpha_init": "ffn_alpha",
    "ffn_beta_init": "ffn_beta",
}


def unflatten(tree):
    return traverse_util.unflatten_dict(tree, sep="/")


def captured(calls):
    found = traverse_util.flatten_dict(calls["intermediates"], sep="/")
    return {path.removesuffix("/__call__"): value[0] for path, value in found.items()}


def first(value):
    return value[0] if isinstance(value, tuple) else value


def custom_fusion(kind, pooling):
    """The fork's fusion of a golden `kind`, its weights and inputs."""
    flags = META.get(kind, {"gating_type": kind.split("/")[1]})
    gate = {
        "granularity": flags["gating_type"],
        "film": flags.get("ffn_film", False),
        "temp": flags.get("mha_temp", 1.5),
        "pooling": pooling,
    }
    family = "b0" if kind.startswith("famB0") else "custom"
    module = GatedFusion(family, 2, 4, gate)
    read = [arrays("gates")[f"famB/in/{name}"] for name in ("video", "audio", "video_mask")]
    args = (read[0], read[1], read[2] > 0, read[2] > 0)
    shapes = shapes_of(jax.eval_shape(module.init, jax.random.key(0), *args)["params"])
    fusion = {"name": family, "gate": gate}
    names = [f"fusion.fusion_layers.{i}.{name}" for i in range(2) for name in _custom(fusion)]
    starts = {entry: flags[flag] for flag, entry in STARTS.items() if flag in flags}
    shapes = {f"fusion/{path}": shape for path, shape in shapes.items()}
    params = unflatten(fill(shapes, qd_detr_rules(), names, SCALARS | starts))["fusion"]
    return module, params, args


def avigate_fusion(case, pooling, **gate):
    """AVIGATE's fusion, its golden weights and inputs."""
    golden = arrays("gates")
    module = AvigateFusion(2, 2, 4, 5, 9, gate={"pooling": pooling} | gate)
    video, audio, mask = (golden[f"{case}/in/{name}"] for name in ("video", "audio", "video_mask"))
    args = (video, audio, mask > 0)
    shapes = shapes_of(jax.eval_shape(module.init, jax.random.key(0), *args)["params"])
    names = list(json.loads(str(golden["famA/meta_json"]))["names"])
    return module, unflatten(fill(shapes, avigate_rules(), names)), args


@pytest.mark.parametrize("kind", KINDS)
def test_the_fork_s_gates_and_stages(kind):
    golden = arrays("gates")
    module, params, args = custom_fusion(kind, "reference")
    apply = jax.jit(lambda p: module.apply({"params": p}, *args, capture_intermediates=True))
    (fused, layers), calls = apply(params)
    calls = captured(calls)
    assert_golden("gates", f"{kind}/fused", fused)
    for i, gates in enumerate(layers):
        found = {f"gate_{name}": gates.get(f"gate_{name}") for name in ("mha", "ffn", "beta")}
        found |= {f"raw_{name}": gates["raw"].get(name) for name in ("mha", "ffn", "beta")}
        found |= {
            "audio_branch": calls[f"layers_{i}/out_proj"],
            "delta_mha": calls.get(f"layers_{i}/delta_norm_mha"),
            "delta_ffn": calls.get(f"layers_{i}/delta_norm_ffn"),
            "self_attention": first(calls[f"layers_{i}/self_attn"]),
            "out": first(calls[f"layers_{i}"]),
        }
        for name, value in found.items():
            assert (value is None) <= (f"{kind}/{i}.{name}" not in golden)
            if f"{kind}/{i}.{name}" in golden:
                assert_golden("gates", f"{kind}/{i}.{name}", value)


@pytest.mark.parametrize("kind", ["famB/clipwise_film", "famB/global_strong"])
def test_the_fork_s_gradients(kind):
    golden = arrays("gates")
    module, params, (video, audio, *masks) = custom_fusion(kind, "reference")

    @jax.jit
    def gradients(params, video, audio):
        def loss(params, video, audio):
            fused, _ = module.apply({"params": params}, video, audio, *masks)
            return (fused * golden["famB/in/grad_weight"]).sum()

        return jax.grad(loss, (0, 1, 2))(params, video, audio)

    of_params, of_video, of_audio = gradients(params, video, audio)
    assert_golden("gates", f"{kind}/grad/video", of_video)
    assert_golden("gates", f"{kind}/grad/audio", of_audio)
    names = META[kind]["grad_names"]
    flat = traverse_util.flatten_dict({"fusion": of_params}, sep="/")
    theirs = invert_rules(flat, qd_detr_rules(), names)
    norms = [np.linalg.norm(theirs[name]) for name in names]
    assert_golden("gates", f"{kind}/grad_norm", norms)


@pytest.mark.parametrize("kind", ["famB/global", "famB/global_strong"])
def test_masked_pooling_is_each_clip_alone(kind):
    module, params, args = custom_fusion(kind, "masked")
    fused, _ = jax.jit(module.apply)({"params": params}, *args)
    expected = arrays("gates")[f"{kind}/alone/fused"]
    tolerance = 10 * noise("gates")[f"{kind}/fused"]
    np.testing.assert_allclose(
        np.asarray(fused)[args[2]], expected[args[2]], rtol=0, atol=tolerance
    )


@pytest.mark.parametrize("case", ["famA", pytest.param("famA_dense", marks=pytest.mark.slow)])
def test_avigate_s_stages_and_gradients(case):
    golden = arrays("gates")
    module, params, args = avigate_fusion(case, "reference")
    apply = jax.jit(lambda p: module.apply({"params": p}, *args, capture_intermediates=True))
    (fused, layers), calls = apply(params)
    calls = captured(calls)
    found = {"out/fused": fused}
    for gate, name in (("mha", "attn_gate"), ("ffn", "ff_gate")):
        gates = [layer[f"gate_{gate}"][:, 0, 0] for layer in layers]
        found[f"out/{name}"] = np.stack(gates, axis=1)
    for i in range(2):
        found |= {
            f"stage/resampler.{i}.out": calls[f"resampler_{i}"],
            f"stage/gate.{i}.attn_gate_raw": layers[i]["raw"]["mha"],
            f"stage/gate.{i}.ff_gate_raw": layers[i]["raw"]["ffn"],
            f"stage/gate.{i}.cross_attn": first(calls[f"gated/layers_{i}/cross_attn"]),
            f"stage/gate.{i}.cross_ff": calls[f"gated/layers_{i}/ffn1"],
            f"stage/gate.{i}.out": first(calls[f"gated/layers_{i}"]),
        }
    for name, value in found.items():
        key = name.removeprefix("stage/").removeprefix("out/")
        assert_golden("gates", f"{case}/{name}", value, key=f"{case}/{key}")

    # The retrieval loss that the goldens' gradients come from.
    text = golden[f"{case}/in/text"]

    @jax.jit
    def gradients(params, text, video, audio):
        def loss(params, text, video, audio):
            fused, _ = module.apply({"params": params}, video, audio, args[2])
            frames = video + params["frame_positions"][None, : video.shape[1]]
            return retrieval_loss(text, fused, frames, args[2])

        return jax.value_and_grad(loss, (0, 1, 2, 3))(params, text, video, audio)

    loss, (of_params, *of_inputs) = gradients(params, text, *args[:2])
    assert_golden("gates", f"{case}/train/loss", loss)
    for name, value in zip(("text", "video", "audio"), of_inputs, strict=True):
        assert_golden("gates", f"{case}/train/grad/{name}", value)
    names = [str(name) for name in golden[f"{case}/train/grad_names"]]
    flat = traverse_util.flatten_dict(of_params, sep="/")
    theirs = invert_rules(flat, avigate_rules(), names)
    norms = [np.linalg.norm(theirs[name]) for name in names]
    assert_golden("gates", f"{case}/train/grad_norm", norms)


def unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def retrieval_loss(text, fused, frames, mask, scale=1 / 0.07, beta=0.2, delta=0.1):
    """AVIGATE's symmetric cross-entropy with its adaptive margin."""
    weight = mask[:, :, None].astype(jnp.float32)

    def pool(x):
        return unit((unit(x) * weight).sum(1) / weight.sum(1))

    words, frames_only = unit(text[:, 0]), pool(frames)
    coarse = scale * words @ pool(fused).T
    fine = scale * jnp.einsum("td,vld->tvl", words, unit(fused))
    fine = jnp.log((jnp.exp(fine) * weight[None, :, :, 0]).sum(-1))
    s_tt, s_vv = (jax.lax.stop_gradient(x @ x.T) for x in (words, frames_only))
    margin = jnp.minimum(delta, beta * (1 - (s_tt + s_vv) / 2)) * (1 - jnp.eye(len(words)))
    logits = (coarse + fine) / 2 + scale * margin
    log_p = (jax.nn.log_softmax(x, axis=1) for x in (logits, logits.T))
    return -sum(jnp.diagonal(x).mean() for x in log_p) / 2


def test_avigate_masked_is_each_clip_alone():
    golden = arrays("gates")
    module, params, args = avigate_fusion("famA", "masked")
    fused, layers = jax.jit(module.apply)({"params": params}, *args)
    np.testing.assert_allclose(
        np.asarray(fused)[args[2]], golden["famA/alone/fused"][args[2]], rtol=0, atol=5e-6
    )
    gates = np.stack([layer["gate_mha"][:, 0, 0] for layer in layers], axis=1)
    np.testing.assert_allclose(gates, golden["famA/alone/attn_gate"], rtol=0, atol=2e-6)


def test_closed_gates_leave_the_plain_transformer_bit_for_bit():
    module, heads, width = GatedFusion("avigate", 2, 2), 2, 8
    keys = jax.random.split(jax.random.key(0), 4)
    x, a, other = (jax.random.normal(key, (2, 5, width)) for key in keys[:3])
    params = traverse_util.flatten_dict(module.init(keys[3], x, a)["params"])
    params = {path: p * ("gates" not in path) for path, p in params.items()}
    params = traverse_util.unflatten_dict(params)
    plain = x
    for i in range(2):
        layer = params[f"layers_{i}"]

        def norm(name, y, layer=layer):
            return LayerNorm(1e-12).apply({"params": layer[name]}, y)

        def linear(y, place, layer=layer):
            weights = layer["ffn2"][place]
            return y @ weights["kernel"] + jnp.broadcast_to(
                weights["bias"], (*y.shape[:2], weights["bias"].size)
            )

        y = norm("norm3", plain)
        plain = plain + Attention(heads).apply({"params": layer["self_attn"]}, y, y, y)[0]
        y = linear(norm("norm4", plain), "layers_0")
        plain = plain + linear(y * jax.nn.sigmoid(1.702 * y), "layers_2")
    for sound in (a, other, 1e3 * a):
        fused, layers = module.apply({"params": params}, x, sound)
        np.testing.assert_array_equal(fused, plain)
        assert all((gates["gate_mha"] == 0).all() for gates in layers)


@pytest.mark.parametrize(
    ("raw", "start", "expected"),
    [(0, 1.0, 0.660756), (0, 1.8, 0.768525), (-3, 1.0, 0.208609), (3, 1.0, 0.935031)],
)
def test_the_sigmoid_gate_s_values(raw, start, expected):
    gates = Gates(GateConfig(bias_init=start), 4)
    c = jnp.ones((1, 1, 8))
    params = jax.tree.map(jnp.zeros_like, gates.init(jax.random.key(0), c)["params"])
    params |= {"mha_bias": jnp.float32(start), "mha_scale": jnp.float32(1)}
    params |= {"ffn_alpha": jnp.float32(0.3)}
    for gate, value in (("mha", raw), ("ffn", 1)):
        params[f"mlp_{gate}"]["layers_2"]["bias"] = jnp.float32([value])
    found = gates.apply({"params": params}, c)
    assert float(found["gate_mha"][0, 0, 0]) == pytest.approx(expected, abs=1e-6)
    assert float(found["gate_ffn"][0, 0, 0]) == pytest.approx(0.228478, abs=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("granularity", ["global", "channel", "clipwise", "elementwise"])
def test_a_gate_has_the_shape_of_its_granularity(family, granularity):
    shape = {"global": (1, 1), "channel": (1, 8), "clipwise": (5, 1), "elementwise": (5, 8)}
    gate = {"granularity": granularity, "film": family == "custom"}
    x = jnp.zeros((2, 5, 8))
    module = GatedFusion(family, 1, 2, gate)
    (fused, (gates,)), _ = jax.eval_shape(module.init_with_output, jax.random.key(0), x, x)
    assert fused.shape == x.shape
    assert set(gates) - {"raw"} == {"gate_mha", "gate_ffn"} | (
        {"gate_beta"} if gate["film"] else set()
    )
    for name in set(gates) - {"raw"}:
        assert gates[name].shape == (2, *shape[granularity])


def test_sound_of_another_length_needs_cross_attention():
    x, a = jnp.ones((2, 5, 8)), jnp.ones((2, 3, 8))
    with pytest.raises(InputError, match="3 audio tokens for 5 visual ones.*'cross'"):
        GatedFusion(num_heads=2).init(jax.random.key(0), x, a)
    gate = {"attn": "cross", "granularity": "clipwise"}
    module = GatedFusion("custom", 1, 2, gate)
    shapes = jax.eval_shape(module.init_with_output, jax.random.key(0), x, a)[0]
    assert shapes[0].shape == x.shape and shapes[1][0]["gate_mha"].shape == (2, 5, 1)


def test_energy_tells_the_gates_what_the_delta_norm_hides():
    """A louder sound of the same shape passes LN(a) unchanged: the branch cannot tell."""
    rng = np.random.default_rng(0)
    x, a = (rng.standard_normal((2, 6, 8)).astype(np.float32) for _ in range(2))
    module = GatedFusion("custom", 1, 2, {"energy": True, "granularity": "clipwise"})
    energy = np.log(np.square(a).mean(-1)) / 2
    variables = module.init(jax.random.key(0), x, a, energy=energy)
    apply = functools.partial(module.apply, variables, capture_intermediates=True)
    (_, soft), calls = apply(x, a, energy=energy)
    (_, loud), louder = apply(x, 10 * a, energy=energy + np.float32(np.log(10)))
    branch = [captured(seen)["layers_0/delta_norm_mha"] for seen in (calls, louder)]
    np.testing.assert_allclose(branch[0], branch[1], rtol=0, atol=1e-4)
    assert np.abs(np.asarray(soft[0]["gate_mha"] - loud[0]["gate_mha"])).mean() > 1e-2
    kernel = variables["params"]["layers_0"]["gates"]["mlp_mha"]["layers_0"]["kernel"]
    assert kernel.shape[0] == 2 * 8 + 1


@pytest.mark.parametrize(
    ("family", "gate", "message"),
    [
        ("costum", {}, "family = 'costum'.*custom"),
        ("custom", {"kind": "relu"}, "gate.kind = 'relu'.*sigmoid"),
        ("custom", {"granularity": "element"}, "gate.granularity.*elementwise"),
        ("b0", {"temperature": 1.0}, "gate.temperature: no such key.*temp"),
    ],
)
def test_mistakes_are_named(family, gate, message):
    with pytest.raises(InputError, match=message):
        make_gate_config(family, gate)


@pytest.mark.parametrize(
    "kind", [x if x == "global" else pytest.param(x, marks=pytest.mark.slow) for x in MODELS]
)
def test_the_fork_s_whole_model(kind):
    granularity = kind.removesuffix("_film")
    gate = {"granularity": granularity, "film": kind.endswith("film"), "pooling": "reference"}
    fusion = {"name": "custom", "num_layers": 2, "num_heads": 4, "gate": gate}
    golden = arrays("gates")
    for order, prefix in (("reference", ""), ("repaired", "fixed/")):
        if f"model/{kind}/{prefix}out/pred_logits" not in golden:
            continue
        model = golden_model("va", fusion=fusion, mask_order=order)
        params = golden_params(model, "model", "gates")
        read = inputs("model", "gates")
        apply = jax.jit(lambda p, model=model, read=read: model.apply({"params": p}, read, True))
        outputs = apply(params)
        seen = outputs["intermediates"]
        found = {
            "out/pred_logits": outputs["pred_logits"],
            "out/pred_spans": outputs["pred_spans"],
            "out/saliency_scores": outputs["saliency_scores"],
            "out/saliency_scores_neg": outputs["saliency_neg"],
            "out/aux0/pred_logits": outputs["aux_outputs"][0]["pred_logits"],
            "out/aux0/pred_spans": outputs["aux_outputs"][0]["pred_spans"],
            "stage/fused": seen["fused"],
            "stage/memory": seen["memory"],
        }
        for i, gates in enumerate(outputs["gates"]):
            found |= {f"gate/{i}.{name}": value for name, value in gates.items()}
        for name, value in found.items():
            path = f"model/{kind}/{prefix}{name}"
            if path in golden:
                assert_golden("gates", path, value, key=f"model/{kind}/{name}")


def test_masks_of_a_row_that_sees_nothing_give_numbers():
    q, v = jnp.ones((1, 2, 1, 4)), jnp.arange(12.0).reshape(1, 3, 1, 4)
    out, weights = attend(q, v, v, jnp.ones((1, 1, 2, 3), bool))
    np.testing.assert_allclose(weights, 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(out[0, 0], v.mean((0, 1, 2)), rtol=1e-6)
