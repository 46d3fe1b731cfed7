"""The golden grounding models: weights by their rule, inputs, and comparison within the noise.

tests/golden/ground/ holds arrays of the original code, measured once: golden_qd_detr.npz (stages
and outputs; the full-width model `w` with some of its stages), golden_losses.npz,
golden_gates.npz, and the name tables of 16 state dicts.
"""

import functools
import json
import pathlib

import jax
import numpy as np
from flax import traverse_util

from avs_jax.convert.ground_names import (
    _attention,
    _linear,
    _norm,
    qd_detr_names,
    qd_detr_rules,
)
from avs_jax.convert.rules import Rule, apply_rules, invert_rules
from avs_jax.models.qd_detr import QDDETR
from tests.golden.compare import shapes_of
from tests.golden.ground.weights_ground import ground_value

FOLDER = pathlib.Path(__file__).resolve().parent / "golden" / "ground"
SCALARS = {"mha_bias": 1.0, "mha_scale": 1.0, "ffn_alpha": 0.3, "ffn_beta": 0.3}
# AVIGATE numbers the norms of the refining half first: its number -> ours.
AVIGATE_NORMS = {3: 1, 4: 2, 1: 3, 2: 4}
NO_DROPOUT = {"dropout": 0.0, "input_dropout": 0.0}
SMALL = {"hidden_dim": 64, "num_heads": 4, "ffn_dim": 128} | NO_DROPOUT
CONFIGS = {"v": SMALL, "va": SMALL, "w": NO_DROPOUT}


def avigate_rules(target_prefix=""):
    """Rules from AVIGATE's fusion (ca03ede) to models.fusion.avigate.AvigateFusion.

    Args:
      target_prefix: of the paths in the tree, with its "/": "fusion/" in QDDETR.
    """
    resampler = rf"{target_prefix}resampler_\1/"
    gated = rf"{target_prefix}gated/layers_\1/"
    rules = [
        Rule("query_tokens", f"{target_prefix}query_tokens", "linear"),
        Rule(r"(query|frame)_position_embeddings\.weight", rf"{target_prefix}\1_positions"),
    ]
    for theirs, target, mlp, norms in (
        ("transformer_Fusion", resampler, "mlp", {1: 1, 2: 2, 3: 3}),
        ("transformerClip", gated, "ffn2", AVIGATE_NORMS),
    ):
        source = rf"{theirs}\.resblocks\.(\d+)\."
        rules += _attention(rf"{source}attn\.", f"{target}self_attn/")
        rules += _attention(rf"{source}cross_attn\.", f"{target}cross_attn/")
        for name, place in (("fc", 0), ("proj", 2)):
            rules += _linear(rf"{source}mlp\.c_{name}\.", f"{target}{mlp}/layers_{place}/")
        for norm, place in norms.items():
            rules += _norm(rf"{source}ln_{norm}\.", f"{target}norm{place}/")
    source = r"transformerClip\.resblocks\.(\d+)\."
    for name, place in (("fc", 0), ("proj", 2)):
        for theirs, ours in (
            (r"cross_ff\.cross", "ffn1"),
            (r"attn_gate\.ag", "gates/mlp_mha"),
            (r"ff_gate\.fg", "gates/mlp_ffn"),
        ):
            rules += _linear(rf"{source}{theirs}_{name}\.", f"{gated}{ours}/layers_{place}/")
    return rules


@functools.cache
def arrays(name):
    """The arrays of golden_{name}.npz."""
    return dict(np.load(FOLDER / f"golden_{name}.npz"))


@functools.cache
def noise(name):
    """The float32 noise of golden_{name}.npz: path -> largest absolute difference from float64."""
    found = traverse_util.flatten_dict(json.loads(str(arrays(name)["meta/noise_json"])), sep="/")
    if name == "gates":
        of_a = json.loads(str(arrays(name)["famA/meta_json"]))["noise"]
        found |= traverse_util.flatten_dict(of_a, sep="/")
    return {path: float(value) for path, value in found.items()}


def assert_golden(name, path, value, where=None, key=None):
    """`value` agrees with an array of golden_{name}.npz within ten times its noise.

    Args:
      name, path: the file and the array.
      value: in the golden layout, or in one of as many values.
      where: bool, what is compared.
      key: the array's path in the table of noise, where it differs.
    """
    expected = arrays(name)[path]
    value = np.asarray(value).reshape(expected.shape)
    tolerance = max(10 * noise(name)[key or path], 1e-6)
    if where is not None:
        value, expected = value[where], expected[where]
    np.testing.assert_allclose(value, expected, rtol=0, atol=tolerance, err_msg=path)


def inputs(case, name="qd_detr"):
    """The inputs of a golden model."""
    found = arrays(name)
    read = {
        "video": found[f"{case}/in/src_vid"],
        "video_mask": found[f"{case}/in/src_vid_mask"] > 0,
        "text": found[f"{case}/in/src_txt"],
        "text_mask": found[f"{case}/in/src_txt_mask"] > 0,
    }
    if f"{case}/in/src_aud" in found:
        read["audio"] = found[f"{case}/in/src_aud"]
    return read


def fill(shapes, rules, names, scalars=SCALARS):
    """A tree {path: array} of these shapes, with the weights that the goldens' rule gives `names`.

    scalars: what the entries hold that keep their configured value.
    """
    blank = {path: np.broadcast_to(np.int8(0), shape) for path, shape in shapes.items()}
    state = {}
    for entry, value in invert_rules(blank, rules, names).items():
        state[entry] = ground_value(entry, value.shape)
        if state[entry] is None:
            state[entry] = np.float32(scalars[entry.rsplit(".", 1)[1]])
    return apply_rules(state, rules, shapes)


def model_names(model):
    """Names of the state dict of a model that the originals have."""
    fields = ("num_text_layers", "num_encoder_layers", "num_decoder_layers", "fusion")
    return qd_detr_names({field: getattr(model, field) for field in fields})


def golden_params(model, case, name="qd_detr"):
    """The golden weights of a model that reads the inputs of `case`."""
    init = functools.partial(model.init, jax.random.key(0), inputs(case, name))
    shapes = shapes_of(jax.eval_shape(init)["params"])
    filled = fill(shapes, qd_detr_rules(), model_names(model))
    return traverse_util.unflatten_dict(filled, sep="/")


def golden_model(case, **fields):
    """QDDETR as the golden `case` has it."""
    return QDDETR(**(CONFIGS[case] | fields))
