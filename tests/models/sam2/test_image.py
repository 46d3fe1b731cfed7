"""SAM2 on images against the original, stage by stage: backbone, neck, prompts, decoder, heads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax.models.backbones.hiera import WindowAttention
from avs_jax.models.layers import sine_position_encoding
from avs_jax.models.sam2.mask_decoder import Upscaling, choose
from avs_jax.spec import ABSENT_POINT, NOT_A_POINT
from tests.golden.weights import rand_input
from tests.sam2_golden import (
    arrays,
    assert_golden,
    golden_model,
    golden_params,
    image,
    run,
)

check = functools.partial(assert_golden, "image")
CASES = {  # name -> (points first, box corners as points, mask, padding token)
    "point1_multi": ("points", None, False, True),
    "points2_single": ("points", None, False, True),
    "box_arg_single": (None, "box", False, False),
    "box_as_points_single": ("points", None, False, True),
    "points_box_mask_multi": ("points", "box", True, False),
    "padding_only_multi": ("points", None, False, True),
    "mask_only_single": (None, None, True, False),
}
MAX_TOKENS = 5


@pytest.fixture(scope="module")
def encoded():
    """Features of the golden image, and the blocks' outputs."""
    features, state = run(golden_model(), "encode_images", image(1000), mutable="intermediates")
    return features, state["intermediates"]


@pytest.fixture(scope="module")
def with_embedding(encoded):
    return run(golden_model(), "without_memory", encoded[0])


def case_prompt(name, count=MAX_TOKENS):
    """The golden prompt: points, labels, mask, has_mask; filled up to `count` points."""
    with_points, with_box, has_mask, is_padded = CASES[name]
    points, labels = np.zeros((0, 2), np.float32), np.zeros(0, np.int32)
    if with_points:
        points = arrays("image")[f"case/{name}/point_coords"][0]
        labels = arrays("image")[f"case/{name}/point_labels"][0]
    if is_padded:
        points, labels = np.append(points, [[0, 0]], 0), np.append(labels, NOT_A_POINT)
    if with_box:
        corners = arrays("image")["prompt/box_input"].reshape(2, 2)
        points, labels = np.append(points, corners, 0), np.append(labels, [2, 3])
    fill = count - len(points)
    points = np.pad(points, ((0, fill), (0, 0))).astype(np.float32)
    labels = np.pad(labels, (0, fill), constant_values=ABSENT_POINT).astype(np.int32)
    mask = rand_input(1002, (1, 1, 64, 64), 3.0)[:, 0] * has_mask
    return points[None], labels[None], mask, np.array([has_mask])


@functools.cache
def decode_case():
    def decode(params, features, *prompt):
        return golden_model().apply(
            {"params": params}, features, *prompt, method="decode", mutable="intermediates"
        )

    return jax.jit(decode)


def test_backbone(encoded):
    blocks = encoded[1]["trunk"]["block_out"]
    for number, stored in enumerate(
        ["block0_sub2", "block1_sub2", None, "block3", None, "block5", "block6", "block7"]
    ):
        if stored:
            expected = arrays("image")[f"trunk/{stored}"]
            step = 2 if "sub2" in stored else 1
            found = np.asarray(blocks[number])[:, ::step, ::step]
            np.testing.assert_allclose(found, expected, rtol=0, atol=5e-5, err_msg=stored)


def test_neck(encoded):
    features, _ = encoded
    check("neck/fpn2", features.coarse)
    check("highres/s1", features.middle)


def test_rectangular_image():
    features = run(golden_model(), "encode_images", image(1001, 192, 320))
    check("nonsquare/fpn2", features.coarse)


@pytest.mark.parametrize("name", CASES)
def test_prompts_and_masks(with_embedding, name):
    """One program for all prompts: points that fill the array are hidden."""
    decoded, state = decode_case()(golden_params(), with_embedding, *case_prompt(name))
    found, kept = arrays("image"), state["intermediates"]["mask_decoder"]
    prefix = f"case/{name}"
    if f"{prefix}/all_masks" in found:
        check(f"{prefix}/all_masks", decoded.masks)
    if f"{prefix}/masks_sub2" in found:
        chosen = decoded.masks[..., 1:] if "multi" in name else decoded.masks[..., :1]
        check(f"{prefix}/masks_sub2", chosen)
    check(f"{prefix}/all_iou", decoded.ious)
    check(f"{prefix}/mask_tokens_out", decoded.tokens)
    check(f"{prefix}/object_score_logits", decoded.object_score)
    if f"{prefix}/hs" in found:
        real = slice(0, 10)
        check(f"{prefix}/hs", kept["hs"][0][:, real])
        layer = kept["transformer"]["layer1"][0]
        check(f"{prefix}/layer1_queries", layer[0][:, real])
        check(f"{prefix}/layer1_keys", layer[1])


HEADS = {"points": "points2_single", "point1": "point1_multi", "none": None}


@functools.cache
def segment():
    model = golden_model()
    return jax.jit(lambda params, *args: model.apply({"params": params}, *args, method="segment"))


def tracking_prompt(case):
    """As `case_prompt` without the padding token, which tracking appends."""
    if case is None:
        points, labels = np.zeros((1, 2, 2)), np.full((1, 2), ABSENT_POINT)
    else:
        points, labels, *_ = case_prompt(case, 5)
        points, labels = points[:, :2], np.where(labels == -1, ABSENT_POINT, labels)[:, :2]
    return (
        np.float32(points),
        np.int32(labels),
        np.zeros((1, 64, 64), np.float32),
        np.zeros(1, bool),
    )


def check_segments(prefix, found):
    check(f"{prefix}/low_res_masks_sub2", found.low_res_mask)
    check(f"{prefix}/obj_ptr", found.obj_ptr)
    check(f"{prefix}/object_score_logits", found.object_score_logits)


@pytest.mark.parametrize("name", HEADS)
def test_heads_of_tracking(with_embedding, name):
    prompt = tracking_prompt(HEADS[name])
    found = segment()(golden_params(), with_embedding, *prompt)
    check_segments(f"heads/{name}", found)
    best = arrays("image")[f"heads/{name}/ious"].max()
    np.testing.assert_allclose(found.iou, [best], rtol=0, atol=1e-6)


def test_an_object_that_is_not_visible(with_embedding):
    found = segment()(golden_params(-0.5), with_embedding, *tracking_prompt("point1_multi"))
    check_segments("heads/absent", found)
    assert (np.asarray(found.low_res_mask) == -1024).all()


def test_two_empty_prompts(with_embedding):
    """Image prediction passes no token; tracking passes two tokens that are not a point."""
    points, labels, mask, none = tracking_prompt(None)
    bare = decode_case()(golden_params(), with_embedding, *case_prompt("padding_only_multi"))[0]
    absent = np.full((1, MAX_TOKENS), ABSENT_POINT, np.int32)
    nothing = np.zeros((1, MAX_TOKENS, 2), np.float32), absent, mask, none
    without = decode_case()(golden_params(), with_embedding, *nothing)[0]
    tracked = segment()(golden_params(), with_embedding, points, labels, mask, none)
    best = 1 + np.asarray(bare.ious)[0, 1:].argmax()
    np.testing.assert_allclose(tracked.low_res_mask, bare.masks[..., best], atol=1e-4)
    assert np.abs(np.asarray(without.masks) - np.asarray(bare.masks)).max() > 0.1


def test_unstable_masks_are_replaced(with_embedding):
    prompt = case_prompt("points2_single")
    decoded = decode_case()(golden_params(), with_embedding, *prompt)[0]
    for threshold in (0.0, 0.98, 1.1):
        found = choose(decoded, jnp.array([False]), stability_threshold=threshold)
        check(f"stability/thresh{threshold}/mask_sub2", found.mask)
        check(f"stability/thresh{threshold}/iou", found.iou)
        np.testing.assert_array_equal(found.token, decoded.tokens[:, 0])


def test_padding_takes_part_in_attention():
    """Windows of 7 on an 8 x 8 map: the padding's keys are the bias, so the bias moves the map."""
    model = WindowAttention(dim=4, num_heads=1, window=7, pools=False, dtype=jnp.float32)
    x = jnp.ones((1, 8, 8, 4))
    params = model.init(jax.random.key(0), x)
    params["params"]["qkv"]["bias"] += jnp.arange(12.0) / 4
    padded = model.apply(params, x)
    whole = model.clone(window=8).apply(params, x)
    np.testing.assert_allclose(whole[0], jnp.broadcast_to(whole[0, 0, 0], (8, 8, 4)), atol=1e-6)
    np.testing.assert_allclose(padded[0, :7, :7], whole[0, :7, :7], atol=1e-6)
    assert np.abs(padded[0, 7:] - whole[0, 7:]).max() > 1e-2


def test_upscaling_is_a_transposed_convolution():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(1, 3, 2, 4)), rng.normal(size=(4, 2, 2, 5))
    params = {"params": {"kernel": jnp.float32(kernel), "bias": jnp.zeros(5)}}
    found = Upscaling(5, jnp.float32).apply(params, jnp.float32(x))
    expected = np.zeros((1, 6, 4, 5))
    for i, j, a, b in np.ndindex(3, 2, 2, 2):
        expected[:, 2 * i + a, 2 * j + b] += x[:, i, j] @ kernel[:, a, b]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("side", [384, 512])
def test_any_multiple_of_32(side):
    """From the image to the masks of a click: of the right sizes, and finite."""
    features = run(golden_model(), "encode_images", image(1000, side, side))
    assert [x.shape[1] for x in features] == [side // 4, side // 8, side // 16]
    click = np.full((1, 1, 2), side / 2, np.float32), np.ones((1, 1), np.int32)
    low, none = np.zeros((1, side // 4, side // 4), np.float32), np.zeros(1, bool)
    decoded = run(golden_model(), "decode_image", features, *click, low, none)
    assert decoded.masks.shape == (1, side // 4, side // 4, 4)
    masks = np.asarray(decoded.masks)
    assert np.isfinite(masks).all() and masks.std() > 0.1


def test_other_sides_are_an_error():
    with pytest.raises(ValueError, match="multiples of 32"):
        run(golden_model(), "encode_images", np.zeros((1, 100, 64, 3), np.float32))


def test_patches_and_positions(encoded):
    """Before the first block, and SAM2's sine code of the maps."""
    features = run(golden_model(), lambda model, x: model.neck(model.trunk(x)), image(1000))
    check("neck/fpn0_sub4", features["res2"])
    check("neck/fpn1_sub2", features["res3"])
    for level, cells in (("pos1_sub4", 32), ("pos2", 16)):
        check(f"neck/{level}", sine_position_encoding(cells, cells, 64)[None])


def test_two_prompts_on_one_image(with_embedding):
    """The original decodes them as a batch that shares the image."""
    found = arrays("image")
    points, labels = found["repeat/point_coords"], found["repeat/point_labels"]
    count = len(points)
    points = np.pad(points, ((0, 0), (0, 1), (0, 0))).astype(np.float32)
    labels = np.pad(labels, ((0, 0), (0, 1)), constant_values=NOT_A_POINT).astype(np.int32)
    features = jax.tree.map(lambda x: np.repeat(x, count, axis=0), with_embedding)
    low, none = np.zeros((count, 64, 64), np.float32), np.zeros(count, bool)
    decoded, _ = decode_case()(golden_params(), features, points, labels, low, none)
    chosen = decoded.masks[..., 1:] if found["repeat/iou"].shape[1] == 3 else decoded.masks[..., :1]
    check("repeat/masks_sub2", chosen)
    ious = decoded.ious[:, 1:] if found["repeat/iou"].shape[1] == 3 else decoded.ious[:, :1]
    np.testing.assert_allclose(ious, found["repeat/iou"], rtol=0, atol=3e-5)


def test_a_mask_as_the_prompt_of_the_heads(with_embedding):
    found = arrays("image")
    mask = found["heads/fullmask/resized_mask"].reshape(1, 64, 64)
    points, labels = np.zeros((1, 2, 2), np.float32), np.full((1, 2), ABSENT_POINT, np.int32)
    prompt = points, labels, mask, np.ones(1, bool), np.zeros(1, bool)  # not ambiguous
    result = segment()(golden_params(), with_embedding, *prompt)
    check_segments("heads/fullmask", result)
