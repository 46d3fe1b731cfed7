"""QD-DETR: every stage of the original, the repaired mask, padding, precision, and the weights."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import NamedSharding, PartitionSpec

from avs_jax.convert.ground_names import (
    UNUSED_SOURCE_TENSORS,
    qd_detr_names,
    qd_detr_rules,
)
from avs_jax.convert.rules import ConversionError, apply_rules, invert_rules
from avs_jax.models.fusion.avigate import AvigateFusion
from avs_jax.models.qd_detr import QDDETR, position_code
from avs_jax.spec import InputError
from tests.golden.compare import shapes_of
from tests.ground_golden import (
    FOLDER,
    NO_DROPOUT,
    SMALL,
    arrays,
    assert_golden,
    avigate_rules,
    golden_model,
    golden_params,
    inputs,
)

TABLES = json.loads((FOLDER / "names_qd_detr.json").read_text())
LAYERS = {"num_text_layers": 2, "num_encoder_layers": 2, "num_decoder_layers": 2}
GATE = {"energy": True, "text": True}
FUSIONS = {  # small ones of each kind, for tests of behavior
    "concat": {"name": "concat"},
    "avigate": {
        "name": "avigate",
        "num_layers": 1,
        "num_resampler_layers": 1,
        "num_audio_queries": 3,
        "share": 0.5,
    },
    "global": {"name": "custom", "num_layers": 2, "gate": GATE},
    "elementwise": {
        "name": "custom",
        "num_layers": 1,
        "gate": GATE | {"granularity": "elementwise", "film": True},
    },
    "b0": {"name": "b0", "num_layers": 1, "gate": {"granularity": "clipwise"}},
}
TINY = {
    "hidden_dim": 16,
    "num_heads": 2,
    "ffn_dim": 24,
    "num_queries": 5,
    "num_text_layers": 1,
    "num_encoder_layers": 1,
    "num_decoder_layers": 2,
}


@functools.cache
def run(case, mask_order):
    """Outputs and what every submodule returned, in training without dropout."""
    model, read = golden_model(case, mask_order=mask_order), inputs(case)
    apply = jax.jit(
        lambda params: model.apply({"params": params}, read, train=True, capture_intermediates=True)
    )
    outputs, captured = jax.device_get(apply(golden_params(model, case)))
    captured = traverse_util.flatten_dict(captured["intermediates"], sep="/")
    return outputs, {path.removesuffix("/__call__"): calls for path, calls in captured.items()}


def random_inputs(seed=0, rows=3, clips=6, words=4):
    """Inputs with padding in every row but the first."""
    rng = np.random.default_rng(seed)
    lengths = np.maximum(1, clips - 2 * np.arange(rows))
    return {
        "video": rng.standard_normal((rows, clips, 7)).astype(np.float32),
        "video_mask": np.arange(clips) < lengths[:, None],
        "text": rng.standard_normal((rows, words, 5)).astype(np.float32),
        "text_mask": np.arange(words) < np.maximum(1, words - np.arange(rows))[:, None],
        "audio": rng.standard_normal((rows, clips, 3)).astype(np.float32),
        "energy": rng.standard_normal((rows, clips)).astype(np.float32),
    }


@functools.cache
def tiny(fusion, **fields):
    """(inputs -> outputs, jitted; weights) of a small model with random weights."""
    model = QDDETR(**(TINY | {"fusion": FUSIONS[fusion]}))
    variables = jax.jit(model.init)(jax.random.key(1), random_inputs())
    model = QDDETR(**(TINY | {"fusion": FUSIONS[fusion]} | fields))
    return jax.jit(functools.partial(model.apply, variables, train=False)), variables


@pytest.mark.parametrize("mask_order", ["repaired", "reference"])
@pytest.mark.parametrize("case", ["v", "va", "w"])
def test_outputs_are_the_original_s(case, mask_order):
    outputs, _ = run(case, mask_order)
    found = {
        "pred_logits": outputs["pred_logits"],
        "pred_spans": outputs["pred_spans"],
        "saliency_scores": outputs["saliency_scores"],
        "saliency_scores_neg": outputs["saliency_neg"],
        "aux0/pred_logits": outputs["aux_outputs"][0]["pred_logits"],
        "aux0/pred_spans": outputs["aux_outputs"][0]["pred_spans"],
    }
    prefix = f"{case}/fixed/out" if mask_order == "repaired" else f"{case}/out"
    for name, value in found.items():
        assert_golden("qd_detr", f"{prefix}/{name}", value, key=f"{case}/out/{name}")


@pytest.mark.parametrize("case", ["v", "va", "w"])
def test_stages_are_the_original_s(case):
    outputs, calls = run(case, "reference")
    params = golden_params(golden_model(case, mask_order="reference"), case)
    seen, golden = outputs["intermediates"], arrays("qd_detr")
    mask = inputs(case)["video_mask"]
    width, length = seen["memory"].shape[-1], mask.shape[1]

    def first(path, call=0):
        value = calls[path][call]
        return value[0] if isinstance(value, tuple) else value

    found = {
        "video_pos": position_code(jnp.asarray(mask), width),
        "memory": seen["memory"],
        "memory_global": seen["memory_global"],
        "hs": np.stack(calls["decoder/norm"]),
        "anchors": np.stack(seen["anchors"]),
        "class_logits_all": np.stack(calls["class_embed"]),
        "span_delta_all": np.stack(calls["span_embed"]),
        "dec.0.anchor_delta": first("decoder/bbox_embed"),
        "dec.1.query_scale": first("decoder/query_scale"),
    }
    for kind in ("txt", "vid"):
        found[f"input_{kind}_proj.0"] = np.maximum(first(f"input_{kind}_proj/linear_0"), 0)
        found[f"input_{kind}_proj.1"] = first(f"input_{kind}_proj")
    for i in range(2):
        layer = f"decoder/layers_{i}"
        found |= {
            f"t2v.{i}.attn_weights": seen["text_weights"][i].mean(1),
            f"dec.{i}.query_pos": first("decoder/ref_point_head", i),
            f"dec.{i}.width_logit": first("decoder/ref_anchor_head", i),
            f"dec.{i}.self_attn": first(f"{layer}/sa_out_proj"),
            f"dec.{i}.cross_attn": first(f"{layer}/ca_out_proj"),
            f"dec.{i}.cross_attn_weights": seen["span_weights"][i].mean(1),
            f"dec.{i}.out": first(layer),
        }
        # What the sine code is projected to, from the golden code.
        project = params["decoder"][f"layers_{i}"]["ca_qpos_sine_proj"]
        if f"{case}/stage/dec.{i}.query_sine" in golden:
            expected = golden[f"{case}/stage/dec.{i}.query_sine"] @ project["kernel"]
            expected = expected + project["bias"][None, None]
            value = first(f"{layer}/ca_qpos_sine_proj")
            np.testing.assert_allclose(value, expected, rtol=0, atol=1e-5)
        for call, prefix in ((0, ""), (1, "neg/")):
            found |= {
                f"{prefix}t2v.{i}.attn": first(f"encoder/text_layers_{i}/self_attn", call),
                f"{prefix}enc.{i}.attn": first(f"encoder/layers_{i}/self_attn", call),
                f"{prefix}enc.{i}.out": first(f"encoder/layers_{i}", call),
            }
            path = f"{case}/stage/{prefix}t2v.{i}.out"
            if path in golden:  # [global ; clips ; words], of which only the clips change
                clips = golden[path][:, 1 : 1 + length]
                value = first(f"encoder/text_layers_{i}", call)
                np.testing.assert_allclose(value, clips, rtol=0, atol=2e-5, err_msg=path)
    for call, prefix in ((0, ""), (1, "neg/")):
        for i in (1, 2):
            found[f"{prefix}saliency_proj{i}"] = first(f"encoder/saliency_proj{i}", call)
    num_compared = 0
    for name, value in found.items():
        if f"{case}/stage/{name}" in golden:
            assert_golden("qd_detr", f"{case}/stage/{name}", value)
            num_compared += 1
    # Of 52 (17): six are compared above, three are computed and unused or parts of others.
    assert num_compared == {"v": 43, "va": 43, "w": 14}[case]


@pytest.mark.slow
def test_the_reference_s_mask_makes_rows_depend_on_each_other():
    read = inputs("v")
    alone = {name: x[:1] for name, x in read.items()}
    for order, agrees in (("repaired", True), ("reference", False)):
        model = golden_model("v", mask_order=order)
        apply = jax.jit(lambda params, read, model=model: model.apply({"params": params}, read))
        params = golden_params(model, "v")
        whole, row = (apply(params, x)["saliency_scores"][0] for x in (read, alone))
        assert (np.abs(whole - row).max() < 1e-5) == agrees


SOME_FUSIONS = [x if x == "avigate" else pytest.param(x, marks=pytest.mark.slow) for x in FUSIONS]


@pytest.mark.slow
@pytest.mark.parametrize("fusion", FUSIONS)
def test_doubling_the_padding_changes_nothing(fusion):
    read = random_inputs()
    padded = {
        name: np.concatenate([x, np.full_like(x, False if x.dtype == bool else 9)], axis=1)
        for name, x in read.items()
    }
    apply, _ = tiny(fusion)
    whole, wide = apply(read), apply(padded)
    valid, length = read["video_mask"], read["video_mask"].shape[1]
    for name in ("pred_logits", "pred_spans"):
        np.testing.assert_allclose(whole[name], wide[name], rtol=0, atol=1e-5)
    scores = np.asarray(wide["saliency_scores"])[:, :length]
    np.testing.assert_allclose(whole["saliency_scores"][valid], scores[valid], rtol=0, atol=1e-5)
    for narrow_gate, wide_gate in zip(*(x.get("gates", []) for x in (whole, wide)), strict=True):
        for name, gate in narrow_gate.items():
            padded_gate = np.asarray(wide_gate[name])[:, : gate.shape[1]]
            where = valid if gate.shape[1] > 1 else np.ones_like(valid[:, :1])
            np.testing.assert_allclose(gate[where], padded_gate[where], rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("fusion", SOME_FUSIONS)
def test_bfloat16_is_finite_and_close(fusion):
    read = random_inputs()
    exact, rough = tiny(fusion)[0](read), tiny(fusion, dtype="bfloat16")[0](read)
    for name, tolerance in (("pred_logits", 0.1), ("pred_spans", 0.05), ("saliency_scores", 0.2)):
        assert rough[name].dtype == jnp.float32
        difference = np.asarray(rough[name] - exact[name])
        if name == "saliency_scores":
            difference = difference[read["video_mask"]]
        assert np.isfinite(difference).all() and 0 < np.abs(difference).max() < tolerance
    assert rough["intermediates"]["memory"].dtype == jnp.bfloat16


@pytest.mark.parametrize("rate", [pytest.param("dropout", marks=pytest.mark.slow), "input_dropout"])
def test_training_draws(rate):
    _, variables = tiny("global")
    fields = {"fusion": FUSIONS["global"]} | NO_DROPOUT | {rate: 0.5}
    model, read = QDDETR(**(TINY | fields)), random_inputs()

    @jax.jit
    def train(key):
        return model.apply(variables, read, train=True, rngs={"dropout": key})["saliency_scores"]

    scores = [train(jax.random.key(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(scores[0], scores[1])
    assert np.abs(np.asarray(scores[0] - scores[2])).max() > 1e-3


def test_the_next_row_is_that_of_the_global_batch():
    apply, variables = tiny("global")
    still = QDDETR(**(TINY | {"fusion": FUSIONS["global"]} | NO_DROPOUT))
    train = jax.jit(lambda read: still.apply(variables, read, train=True)["saliency_neg"])
    read = random_inputs(rows=4)
    mesh = jax.make_mesh((4,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    sharded = jax.device_put(read, NamedSharding(mesh, PartitionSpec("data")))
    other = read | {name: np.roll(read[name], -1, axis=0) for name in ("text", "text_mask")}
    expected = apply(other)["saliency_scores"]
    assert "saliency_neg" not in apply(read)
    for rows in (read, sharded):
        np.testing.assert_allclose(train(rows), expected, rtol=0, atol=1e-5)


def test_a_gated_model_runs_without_sound():
    read = random_inputs()
    del read["audio"], read["energy"]
    outputs = tiny("global")[0](read)
    assert "gates" not in outputs and np.isfinite(outputs["pred_spans"]).all()


def test_what_the_gates_read_moves_them():
    apply, read = tiny("global")[0], random_inputs()
    gates = apply(read)["gates"]
    assert gates[0]["gate_mha"].shape == (3, 1, 1) and set(gates[0]) == {"gate_mha", "gate_ffn"}
    for name in ("energy", "text", "audio"):
        moved = apply(read | {name: 2 * read[name] ** 2})["gates"]
        assert np.abs(np.asarray(gates[0]["gate_mha"] - moved[0]["gate_mha"])).max() > 1e-4


@pytest.mark.parametrize(
    ("fields", "drop", "message"),
    [
        ({}, "text_mask", "no text_mask"),
        ({"mask_order": "repaird"}, None, "mask_order = 'repaird'"),
        ({"fusion": {"name": "gated"}}, None, "fusion.name = 'gated'.*avigate"),
        ({"fusion": {"name": "custom", "num_layer": 2}}, None, "num_layer: .*num_layers"),
        ({"fusion": {"name": "custom", "gate": {"films": True}}}, None, "gate.films: .*film"),
        ({"fusion": FUSIONS["global"]}, "energy", "gate.energy is on"),
        ({"fusion": {"name": "avigate", "max_length": 5}}, None, "max_length = 5.*6 clips"),
        ({"num_heads": 3}, None, "num_heads = 3 does not divide a width of 16"),
    ],
)
def test_mistakes_are_named(fields, drop, message):
    read = random_inputs()
    read.pop(drop, None)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(QDDETR(**(TINY | fields)).init, jax.random.key(0), read)


@pytest.mark.parametrize("fusion", ["concat", "global"])
def test_sound_of_another_length_is_an_error(fusion):
    read = random_inputs()
    read["audio"] = read["audio"][:, :-1]
    with pytest.raises(InputError, match="audio"):
        jax.eval_shape(QDDETR(**(TINY | {"fusion": FUSIONS[fusion]})).init, jax.random.key(0), read)


# ---- weights ----


def table_model(table):
    """The model of a name table, and its inputs' shapes."""
    name, flags = table, TABLES[table]["flags"]
    fusion = {"name": "concat"}
    if "--use_avigate_custom" in flags:
        granularity = flags.split("--gating_type ")[1].split()[0]
        gate = {"granularity": granularity, "film": "--ffn_gate_film" in flags}
        fusion = {"name": "b0" if "tanh" in name else "custom", "num_layers": 4, "gate": gate}
    sizes = {kind: TABLES[table][f"{kind}_in"] for kind in ("video", "text", "audio")}
    read = {kind: jnp.zeros((1, 2, size)) for kind, size in sizes.items() if size}
    masks = {f"{kind}_mask": jnp.ones((1, 2), bool) for kind in ("video", "text")}
    return QDDETR(fusion=fusion), read | masks


def distinct_state(table):
    """A state dict of a name table in which every tensor holds a number of its own."""
    entries = TABLES[table]["state_dict"]
    return {
        name: np.broadcast_to(np.float32(i), shape)
        for i, (name, shape) in enumerate(entries.items())
    }


def carry(state, rules, shapes):
    """Import, then export under the same names; what is kept aside comes back too."""
    tree = apply_rules(state, rules, shapes, dtype=np.float32)
    assert set(tree) == set(shapes)
    return invert_rules(tree, rules, list(state))


@pytest.mark.parametrize("table", [name for name in TABLES if name != "avigate_original_fusion"])
def test_name_tables_match_on_both_sides(table):
    model, read = table_model(table)
    shapes = shapes_of(jax.eval_shape(model.init, jax.random.key(0), read)["params"])
    state = distinct_state(table)
    assert qd_detr_names(LAYERS | {"fusion": model.fusion}) == list(state)
    back = carry(state, qd_detr_rules(), shapes)
    aside = {name for name in state if name not in back}
    assert len(aside) == 3 and all(
        name.startswith(UNUSED_SOURCE_TENSORS.split("\\")[0]) for name in aside
    )
    for name, value in back.items():
        assert value.shape == state[name].shape and (value == state[name]).all(), name
    num_aside = sum(state[name].size for name in aside)
    num_ours = sum(int(np.prod(shape)) for shape in shapes.values())
    assert num_ours + num_aside == TABLES[table]["trainable_parameters"]


def test_avigate_s_names_match_on_both_sides():
    state = distinct_state("avigate_original_fusion")
    x = jnp.zeros((1, 2, 512))
    shapes = shapes_of(jax.eval_shape(AvigateFusion().init, jax.random.key(0), x, x)["params"])
    back = carry(state, avigate_rules(), shapes)
    assert list(back) == list(state)
    assert all((back[name] == state[name]).all() for name in state)
    inside = avigate_rules("fusion/")
    assert set(apply_rules(state, inside, {f"fusion/{k}": v for k, v in shapes.items()})) == {
        f"fusion/{path}" for path in shapes
    }


def test_import_then_export_is_the_identity():
    model = QDDETR(
        **(SMALL | {"fusion": {"name": "custom", "num_layers": 2, "gate": {"film": True}}})
    )
    params = traverse_util.flatten_dict(golden_params(model, "va"), sep="/")
    shapes = {path: np.shape(value) for path, value in params.items()}
    names = qd_detr_names(LAYERS | {"fusion": model.fusion})
    state = invert_rules(params, qd_detr_rules(), names)
    again = invert_rules(apply_rules(state, qd_detr_rules(), shapes), qd_detr_rules(), names)
    assert list(again) == list(state)
    assert all(np.array_equal(again[name], state[name]) for name in state)


def test_a_missing_and_a_strange_tensor_are_errors():
    model, read = table_model("qvhighlights_clip_only")
    shapes = shapes_of(jax.eval_shape(model.init, jax.random.key(0), read)["params"])
    state = distinct_state("qvhighlights_clip_only")
    del state["saliency_proj1.bias"]
    state["fusion.fusion_layers.0.a_proj.bias"] = np.zeros(256, np.float32)
    with pytest.raises(ConversionError) as error:
        apply_rules(state, qd_detr_rules(), shapes)
    assert "encoder/saliency_proj1/bias (256,): nothing in the source fills it" in str(error.value)
    assert "fusion/layers_0/a_proj/bias: the model has no such parameter" in str(error.value)
