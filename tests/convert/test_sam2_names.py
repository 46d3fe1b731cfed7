"""Names of SAM2, all sizes and both versions: strict both ways, HF layout, bit for bit back."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from avs_jax.convert.reader import read_state_dict
from avs_jax.convert.rules import ConversionError, apply_rules, invert_rules
from avs_jax.convert.sam2_names import original_layout, original_name, sam2_names, sam2_rules
from avs_jax.convert.writer import write_state_dict
from avs_jax.models import build_model
from avs_jax.models.sam2.model import SAM2
from avs_jax.programs import convert_weights, export_weights
from avs_jax.programs.weight_conversion import convert, convert_part
from avs_jax.runtime.checkpoint import Checkpoint, save_variables
from avs_jax.runtime.pretrained import load_parts
from avs_jax.spec import InputError
from configs import s4_sam2, s4_vct_hiera
from configs.sam2 import sam2_config, vary
from tests.sam2_golden import name_tables, param_shapes

SIZES = ("tiny", "small", "base_plus", "large")


def model_config(size, version=""):
    return vary(sam2_config(size), version).model


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_every_published_size(size):
    """Names, order and shapes of 2.1; 2.0 has three tensors less; both fill the whole tree."""
    table = name_tables()[size]
    config = model_config(size)
    assert sam2_names(config) == [name for name, _ in table["names"]]
    shapes = param_shapes(build_model(config, SAM2))
    gaussian = 256
    assert sum(np.prod(shape) for shape in shapes.values()) == table["count"] + gaussian
    state = {name: np.broadcast_to(np.float32(0), shape) for name, shape in table["names"]}
    tree = apply_rules(state, sam2_rules(), shapes)
    back = invert_rules(tree, sam2_rules(), list(state))
    assert {name: x.shape for name, x in back.items()} == {n: x.shape for n, x in state.items()}

    older = model_config(size, "v2.0")
    missing = set(sam2_names(config)) - set(sam2_names(older))
    assert missing == set(table["missing_2.0"]) and len(missing) == 3
    shapes = param_shapes(build_model(older, SAM2))
    apply_rules({n: x for n, x in state.items() if n not in missing}, sam2_rules(), shapes)
    with pytest.raises(ConversionError, match="no_obj_embed_spatial"):
        apply_rules(state, sam2_rules(), shapes)


@pytest.mark.parametrize("size", SIZES)
def test_names_of_huggingface(size):
    table = name_tables()[size]
    for theirs, ours in table["map"].items():
        if "point_embed." not in theirs:
            assert original_name(theirs) == ours
    state = {name: np.zeros(shape, np.int8) for name, shape in table["huggingface"].items()}
    renamed = original_layout(state)
    assert {name: list(x.shape) for name, x in renamed.items()} == dict(table["names"])


def test_two_different_position_codes_are_an_error():
    state = {
        "vision_encoder.backbone.pos_embed": np.zeros(1),
        "shared_image_embedding.positional_embedding": np.zeros(2),
        "prompt_encoder.shared_embedding.positional_embedding": np.ones(2),
    }
    assert "prompt_encoder.shared_embedding.positional_embedding" in original_layout(state)


@pytest.mark.parametrize("layout", ["torch", pytest.param("safetensors", marks=pytest.mark.slow)])
def test_through_the_programs(tmp_path, layout, capsys):
    """A file of the original -> checkpoint -> file: the same bits, and in .pt the same order."""
    config = vary(sam2_config("tiny"), "tiny")
    shapes = param_shapes(build_model(config.model, SAM2))
    blank = {path: np.broadcast_to(np.int8(0), shape) for path, shape in shapes.items()}
    names, rng = sam2_names(config.model), np.random.default_rng(0)
    state = {
        name: rng.standard_normal(x.shape).astype(np.float32)
        for name, x in invert_rules(blank, sam2_rules(), names).items()
    }
    suffix = {"torch": "pt", "safetensors": "safetensors"}[layout]
    source, back = tmp_path / f"in.{suffix}", tmp_path / f"out.{suffix}"
    write_state_dict(source, state, layout, {})
    argv = ["convert_weights.py", "--source=sam2", f"--input={source}", f"--output={tmp_path}/w"]
    assert convert_weights.main([*argv, "--config=configs/sam2_tiny.py:tiny"]) == 0
    argv = ["export_weights.py", f"--checkpoint={tmp_path}/w", f"--format={layout}"]
    assert export_weights.main([*argv, f"--output={back}"]) == 0, capsys.readouterr().err
    found = read_state_dict(back)
    assert list(found) == names if layout == "torch" else set(found) == set(names)
    for name, x in state.items():
        np.testing.assert_array_equal(found[name], x)
    params, _ = Checkpoint.find(str(tmp_path / "w")).variables()
    assert len(jax.tree.leaves(params)) == len(shapes)


@functools.cache
def tiny_state():
    """A random state dict of `sam2_tiny:tiny`, in the original's order."""
    config = vary(sam2_config("tiny"), "tiny")
    shapes = param_shapes(build_model(config.model, SAM2))
    blank = {path: np.broadcast_to(np.int8(0), shape) for path, shape in shapes.items()}
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal(x.shape).astype(np.float32)
        for name, x in invert_rules(blank, sam2_rules(), sam2_names(config.model)).items()
    }


def test_the_image_encoder_is_a_backbone_of_vct():
    """Every tensor of the encoder, and nothing else of the file."""
    config = s4_vct_hiera.get_config("tiny")
    config.model.backbone.width = 32
    result, stored = convert_part(tiny_state(), "hiera_fpn", config)
    shapes = param_shapes(build_model(vary(sam2_config("tiny"), "tiny").model, SAM2))
    tree = apply_rules(tiny_state(), sam2_rules(), shapes)
    found = traverse_util.flatten_dict(result.variables["params"], sep="/")
    assert set(found) == {path for path in tree if path.startswith(("trunk/", "neck/"))}
    for path, x in found.items():
        np.testing.assert_array_equal(x, tree[path])
    assert stored.part == "backbone" and stored.backbone.name == "hiera_fpn"
    assert result.ignored
    assert all(not name.startswith("image_encoder.") for name in result.ignored)


@pytest.mark.slow
def test_weights_of_sam2_start_its_host(tmp_path):
    track = vary(sam2_config("tiny"), "tiny")
    variables = convert(tiny_state(), "sam2", track).variables
    save_variables(tmp_path / "weights", variables, track)
    config = s4_sam2.get_config("tiny")
    config.init.sam2 = str(tmp_path / "weights")
    blank = jax.tree.map(jnp.zeros_like, variables["params"])
    params, _, lines = load_parts({"sam2": blank, "class_head": jnp.ones(1)}, {}, config)
    jax.tree.map(np.testing.assert_array_equal, params["sam2"], variables["params"])
    assert lines[0].startswith("sam2: ") and params["class_head"] == 1
    config.model.sam2.num_maps = 5
    with pytest.raises(InputError, match="num_maps: 7 in the folder, 5 now"):
        load_parts({"sam2": blank}, {}, config)
