"""Swin: numbers of the original, and the properties of its scan and its drop path."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from avs_jax.convert.rules import apply_rules, invert_rules
from avs_jax.convert.tables import swin_file_rules, swin_rules
from avs_jax.models.backbones.stages import FEATURE_LEVELS, drop_path_scales
from avs_jax.models.backbones.swin import (
    Block,
    PatchEmbed,
    PatchMerging,
    Stage,
    Swin,
    relative_position_index,
    shift_mask,
)
from avs_jax.models.layers import LayerNorm
from avs_jax.models.rules import check_rules
from avs_jax.spec import PIXEL_MEAN, PIXEL_STD, InputError
from tests.backbone_files import assert_probe, entries, fill, golden_state
from tests.conftest import GOLDEN
from tests.golden.compare import assert_golden, shapes_of, vct_params
from tests.golden.weights import rand_input

TINY = Swin(embed_dim=32, depths=(2, 2, 2, 2), num_heads=(2, 4, 8, 16), window_size=6)
ODD = Swin(embed_dim=8, depths=(1, 3, 2, 1), num_heads=(1, 2, 2, 4), window_size=3)
PREFIXES = ("backbone", "pre_sam_backbone")


@functools.cache
def golden_s4():
    return dict(np.load(GOLDEN / "golden_tiny_s4.npz"))


@functools.cache
def checkpoint_entries() -> dict[str, list]:
    return json.loads((GOLDEN / "params_s4_swinb384.json").read_text())["state_dict"]


def source_names(prefix: str, depths) -> list[str]:
    """The names of a Swin of these depths, none of which exceeds that of Swin-B."""
    names = []
    for name in checkpoint_entries():
        block = re.match(r".*layers\.(\d)\.blocks\.(\d+)\.", name)
        if name.startswith(prefix + ".") and (
            block is None or int(block[2]) < depths[int(block[1])]
        ):
            names.append(name)
    return names


def abstract_params(model: Swin):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]


def tiny_params(prefix: str):
    rules = swin_rules(prefix, prefix, TINY.depths)
    names = source_names(prefix, TINY.depths)
    return vct_params({prefix: abstract_params(TINY)}, rules, names)[prefix]


def golden_input(field: str) -> np.ndarray:
    """float32 [10, 96, 128, 3], the normalized frames of both clips."""
    frames = np.concatenate([golden_s4()[f"in/{field}_{clip}"] for clip in range(2)])
    mean, std = np.float32(PIXEL_MEAN), np.float32(PIXEL_STD)
    return (np.moveaxis(frames, 1, -1).astype(np.float32) - mean) / std


@functools.cache
def tiny_features(prefix: str):
    """Outputs and intermediates of the tiny backbone `prefix` on the golden's inputs."""
    field = "images" if prefix == "backbone" else "pre_masks"
    return run_tiny({"params": tiny_params(prefix)}, golden_input(field))


@jax.jit
def run_tiny(variables, x):
    outputs, state = TINY.apply(variables, x, mutable="intermediates")
    return outputs, state["intermediates"]


def channels_first(x) -> np.ndarray:
    return np.moveaxis(np.asarray(x), -1, 1)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_block_agrees_with_the_original(prefix):
    """96 x 128 px at window 6: padded windows, and in the last stage a single, shifted one."""
    golden = golden_s4()
    outputs, seen = tiny_features(prefix)
    (patch_embed,) = seen["patch_embed"]["out"]
    assert_golden(golden, f"{prefix}/patch_embed", channels_first(patch_embed))
    for stage in range(4):
        for block in range(2):
            (pairs,) = seen[f"layers_{stage}"]["pairs"][f"block_{block}"]["block_out"]
            assert pairs.shape[0] == 1  # one pair
            tokens = pairs[0].reshape(10, -1, pairs.shape[-1])
            assert_golden(golden, f"{prefix}/layers.{stage}.blocks.{block}", tokens)
    for level in FEATURE_LEVELS:
        assert_golden(golden, f"{prefix}/{level}", channels_first(outputs[level]))


def test_odd_sizes_agree_with_the_original():
    """90 x 71 px: no stage and no window divides it."""
    golden = golden_s4()
    x = np.moveaxis(golden["swin_odd/in"], 1, -1)
    outputs, _ = run_tiny({"params": tiny_params("backbone")}, x)
    for level in FEATURE_LEVELS:
        assert outputs[level].shape[1:3] == tuple(golden[f"swin_odd/{level}_shape"][2:])
        assert_golden(golden, f"swin_odd/{level}", channels_first(outputs[level]))


def test_swin_b_at_384_px_agrees_with_the_original():
    """The published size: 24 blocks, and a last stage whose one window is shifted."""
    model = Swin()
    tree = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    names = entries("swin_base_vct_backbone")
    rules = swin_file_rules(model.depths, names)
    variables = fill(tree, golden_state(names), rules)
    x = rand_input(700 + 384, (1, 3, 384, 384)).transpose(0, 2, 3, 1)
    outputs = jax.jit(model.apply)({"params": variables["params"]}, x)
    golden = np.load(GOLDEN / "golden_backbones.npz")
    for level in FEATURE_LEVELS:
        assert_probe(outputs[level], f"vct_swin/384/{level}", golden)


@functools.cache
def odd_variables():
    """Random everywhere, because zeros and ones would hide a wrong bias or norm."""
    rng = np.random.default_rng(1)
    draw = lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), jnp.float32)  # noqa: E731
    return {"params": jax.tree.map(draw, abstract_params(ODD))}


def odd_images(num_frames=2):
    return jax.random.normal(jax.random.key(3), (num_frames, 37, 50, 3))


def test_scanned_depths_of_any_parity_equal_sequential_blocks():
    """A scan over pairs and a last block equal calling every block in order."""
    params, dtype = odd_variables()["params"], jnp.dtype("float32")

    @jax.jit
    def composed(params, x):
        x = PatchEmbed(8, dtype).apply({"params": params["patch_embed"]}, x)
        outputs = {}
        for i, depth in enumerate(ODD.depths):
            stage = params[f"layers_{i}"]
            for j in range(depth):
                if j == depth - 1 and depth % 2:
                    block = stage["last"]
                else:
                    pairs = stage["pairs"][f"block_{j % 2}"]
                    block = jax.tree.map(lambda leaf, j=j: leaf[j // 2], pairs)
                layer = Block(ODD.num_heads[i], 3, 32 * 2**i, dtype, shifted=j % 2 == 1)
                x = layer.apply({"params": block}, x, None)
            outputs[FEATURE_LEVELS[i]] = LayerNorm().apply({"params": params[f"norm{i}"]}, x)
            if i < 3:
                x = PatchMerging(dtype).apply({"params": stage["downsample"]}, x)
        return outputs

    assert "pairs" not in params["layers_0"] and "last" not in params["layers_2"]
    x = odd_images()
    expected, outputs = composed(params, x), jax.jit(ODD.apply)({"params": params}, x)
    for level in FEATURE_LEVELS:
        np.testing.assert_allclose(outputs[level], expected[level], rtol=0, atol=2e-5)


def test_every_branch_of_a_stage_gets_its_own_scale():
    """Factors of block, branch and frame reach the same places with and without the scan."""
    params = odd_variables()["params"]["layers_1"]
    fields = dict(num_heads=2, window_size=3, mlp_dim=64, dtype=jnp.dtype("float32"))
    x = jax.random.normal(jax.random.key(3), (2, 5, 7, 16))
    scales = jnp.arange(1.0, 13.0).reshape(3, 2, 2) / 6

    stage = Stage(depth=3, downsample=False, remat=False, block=fields)
    out, _ = jax.jit(stage.apply)({"params": params}, x, scales)
    pairs = params["pairs"]
    blocks = [jax.tree.map(lambda leaf: leaf[0], pairs[f"block_{j}"]) for j in range(2)]
    for j, block in enumerate([*blocks, params["last"]]):
        run = jax.jit(Block(**fields, shifted=j == 1).apply)
        scale = scales[j]
        x = jnp.concatenate(  # frame by frame: a frame reads its own factors
            [run({"params": block}, x[n : n + 1], scale[:, n : n + 1]) for n in range(2)]
        )
    np.testing.assert_allclose(out, x, rtol=0, atol=1e-5 * float(jnp.abs(x).max()))
    for attn, mlp in ((0, 0), (0, 1), (1, 0)):  # `run` and `block` are those of the last
        same = run({"params": block}, x[:1], jnp.array([[attn], [mlp]], jnp.float32)) == x[:1]
        assert bool(same.all()) == (attn == mlp == 0)


@pytest.mark.slow
def test_drop_path_of_a_frame_depends_only_on_its_id():
    """Frames 4 and 1 alone, in another order, get the numbers they get among five."""
    x, variables = odd_images(5), odd_variables()
    model = ODD.clone(drop_path_rate=0.5)

    @functools.partial(jax.jit, static_argnames="train")
    def run(x, frame_ids, train=True):
        rngs = {"drop_path": jax.random.key(5)}
        return model.apply(variables, x, train=train, frame_ids=frame_ids, rngs=rngs)["res5"]

    whole = run(x, None)
    subset = run(x[jnp.array([4, 1])], jnp.array([4, 1]))
    np.testing.assert_allclose(subset, whole[jnp.array([4, 1])], rtol=0, atol=2e-5)
    renamed = run(x[jnp.array([4, 1])], jnp.array([0, 1]))
    np.testing.assert_allclose(renamed[1], subset[1], rtol=0, atol=2e-5)
    assert np.abs(renamed[0] - subset[0]).max() > 0.1
    assert np.abs(whole - run(x, None, train=False)).max() > 0.1


def test_drop_path_rates_grow_with_depth_and_keep_the_mean():
    scales = np.asarray(drop_path_scales(jax.random.key(0), jnp.arange(4000), 5, 0.4))
    assert scales.shape == (5, 2, 4000)
    rates = np.linspace(0, 0.4, 5)
    np.testing.assert_allclose((scales == 0).mean((1, 2)), rates, atol=0.03)
    for layer, rate in zip(scales, rates, strict=True):
        np.testing.assert_allclose(layer[layer > 0], 1 / (1 - rate), rtol=1e-6)
    both = (scales[4] == 0).all(0).mean()  # the two branches of a block are dropped independently
    assert abs(both - 0.16) < 0.03


@pytest.mark.slow
def test_remat_changes_no_gradient():
    """In a stage with a scanned pair and a last block, drop path on."""
    params = odd_variables()["params"]["layers_1"]
    fields = dict(num_heads=2, window_size=3, mlp_dim=64, dtype=jnp.dtype("float32"))
    x = jax.random.normal(jax.random.key(3), (2, 5, 7, 16))
    scales = drop_path_scales(jax.random.key(5), jnp.arange(2), 3, 0.3)

    def gradients(remat):
        stage = Stage(depth=3, downsample=True, remat=remat, block=fields)

        def loss(params):
            out, merged = stage.apply({"params": params}, x, scales)
            return jnp.square(out[..., 0]).mean() + jnp.square(merged[..., 0]).mean()

        kept = [leaf for leaf in jax.tree.leaves(jax.vjp(loss, params)[1]) if hasattr(leaf, "size")]
        return jax.jit(jax.grad(loss))(params), kept

    (plain, kept), (remat, kept_less) = gradients(False), gradients(True)
    # Six windows of nine tokens and two heads in each of two frames: no map of 9 x 9 is kept.
    assert not [leaf.shape for leaf in kept if leaf.size >= 2 * 6 * 2 * 81 and leaf.shape[-1] == 9]
    assert sum(leaf.size for leaf in kept_less) < 0.5 * sum(leaf.size for leaf in kept)
    assert jax.tree.structure(plain) == jax.tree.structure(remat)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(remat), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert min(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(plain)) > 0


def test_bfloat16_stays_close_to_float32():
    model = TINY.clone(dtype="bfloat16")
    params = tiny_params("backbone")
    outputs = jax.jit(model.apply)({"params": params}, golden_input("images"))
    reference, _ = tiny_features("backbone")
    for level in FEATURE_LEVELS:
        assert outputs[level].dtype == jnp.bfloat16
        error = np.asarray(outputs[level], np.float32) - np.asarray(reference[level])
        assert 1e-4 < np.sqrt(np.square(error).mean()) < 0.03  # of values with a deviation of 1
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(abstract_params(model)))


@pytest.mark.parametrize("prefix", PREFIXES)
def test_rules_carry_the_whole_of_swin_b(prefix):
    """The rules match every tensor of the official checkpoint with every parameter."""
    model = Swin()
    params = abstract_params(model)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 86_880_376
    source = {
        name: np.zeros(shape, np.int8)
        for name, (shape, _) in checkpoint_entries().items()
        if name.startswith(prefix + ".")
    }
    shapes = shapes_of({prefix: params})
    rules = swin_rules(prefix, prefix, model.depths)
    assert set(apply_rules(source, rules, shapes)) == set(shapes)


def test_applying_and_inverting_rules_is_the_identity():
    params = jax.tree.map(np.asarray, odd_variables()["params"])
    flat = traverse_util.flatten_dict(params, sep="/")
    rules = swin_rules("", "", ODD.depths)
    names = [name.removeprefix("backbone.") for name in source_names("backbone", (1, 2, 2, 1))]
    names += [re.sub(r"blocks\.1", "blocks.2", n) for n in names if "layers.1.blocks.1" in n]
    state = invert_rules(flat, rules, names)
    assert state["layers.1.blocks.2.attn.qkv.weight"].shape == (48, 16)
    back = apply_rules(state, rules, shapes_of(params))
    assert back.keys() == flat.keys()
    for path, value in flat.items():
        np.testing.assert_array_equal(back[path], value, err_msg=path)


def test_relative_position_and_mask_of_small_windows():
    """By hand: window 2, shift 1, on a map of one window and on one of two."""
    np.testing.assert_array_equal(
        relative_position_index(2), [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    )
    np.testing.assert_array_equal(shift_mask(2, 2, 2, 1)[0], -100.0 * (1 - np.eye(4)))
    first, second = shift_mask(2, 4, 2, 1)
    rows = np.kron([[0, 1], [1, 0]], np.ones((2, 2)))
    np.testing.assert_array_equal(first, -100.0 * rows)
    np.testing.assert_array_equal(second, -100.0 * (1 - np.eye(4)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depths": (2, 2, 2)}, "depths"),
        ({"depths": (2, 2, 0, 2)}, "depths"),
        ({"num_heads": (1, 2, 3, 4)}, r"divide the stages' channels, \[8, 16, 32, 64\]"),
        ({"window_size": 0}, "window_size"),
        ({"drop_path_rate": 1.0}, "drop_path_rate"),
    ],
)
def test_invalid_fields_are_named(fields, message):
    with pytest.raises(InputError, match=message):
        check_rules(Swin.RULES, {"backbone": {"embed_dim": 8} | fields})


def test_invalid_shapes_are_named():
    with pytest.raises(ValueError, match="x: shape"):
        jax.eval_shape(ODD.init, jax.random.key(0), jnp.zeros((32, 32, 3)))
    with pytest.raises(ValueError, match="frame_ids"):
        ODD.apply(odd_variables(), odd_images(), train=True, frame_ids=jnp.arange(3))
