"""SAM2 on videos against the original: memory, attention, pointers, and whole clips."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax.models.sam2.attention import axial_angles, rotate
from avs_jax.models.sam2.bank import (
    EMPTY,
    Memory,
    closest,
    empty_bank,
    recall,
    remember,
    remember_prompted,
)
from avs_jax.models.sam2.model import time_code
from avs_jax.ops.sampling import resize_bilinear
from tests.sam2_golden import SIDE, arrays, assert_golden, frame, golden_model, golden_params, meta

pytestmark = pytest.mark.slow  # tests/inference/test_sam2.py tracks through the same code

check = functools.partial(assert_golden, "video")


def disk(row=0.4, column=0.55, radius=0.18):
    y, x = np.mgrid[:SIDE, :SIDE]
    return ((y - row * SIDE) ** 2 + (x - column * SIDE) ** 2 <= (radius * SIDE) ** 2)[None]


def click():
    found = arrays("video")
    return found["obj2/point_coords"], found["obj2/point_labels"]


class Video:
    """Steps of a golden run: jitted methods of one model, and the features of its frames."""

    def __init__(self, params, **fields):
        self.model, self.params, self._features = golden_model(**fields), params, {}
        self._jitted = {}

    def call(self, method, *args, mutable=False, **static):
        key = (method, mutable, *static.items())
        if key not in self._jitted:
            self._jitted[key] = jax.jit(
                lambda params, *args: self.model.apply(
                    {"params": params}, *args, method=method, mutable=mutable, **static
                )
            )
        return self._jitted[key](self.params, *args)

    def features(self, number, count=1):
        if number not in self._features:
            self._features[number] = self.call("encode_images", frame(number))
        found = self._features[number]
        return jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), found)

    def start(self, number, prompt):
        """A prompted frame, as the original's track_step: memory from the mask at full size."""
        features = self.features(number)
        if prompt == "mask_inputs":
            found = self.call("accept_masks", features, disk())
            masks = np.float32(20 * disk() - 10)
        elif prompt == "empty":
            found = self.call("accept_masks", features, np.zeros_like(disk()))
            masks = np.full(disk().shape, -10, np.float32)
        else:
            low, none = np.zeros((1, 64, 64), np.float32), np.zeros(1, bool)
            seen = self.call("without_memory", features)
            found = self.call("segment", seen, *click(), low, none)
            masks = None
        return found, self.call("encode_memory", features, found, masks)

    def run(self, order, prompts, num_frames, reverse=False):
        """Yields (frame, segments, memory, bank before it)."""
        bank, new = None, np.ones(1, bool)
        for number in order:
            index = np.int32(num_frames - 1 - number if reverse else number)
            if number in prompts:
                found, memory = self.start(number, prompts[number])
                bank = bank or self.call("new_bank", memory, num_prompted=4)
                before, bank = bank, remember_prompted(bank, memory, index, new)
            else:
                before = bank
                found, memory = self.call(
                    "follow", self.features(number), bank, index, np.int32(num_frames)
                )
                bank = remember(bank, memory, index, new)
            yield number, found, memory, before


def check_frame(prefix, found, memory):
    stored = arrays("video")
    for name in ("low_res_mask", "low_res_mask_sub2", "low_res_mask_sub4"):
        if f"{prefix}/{name}" in stored:
            check(f"{prefix}/{name}", found.low_res_mask)
    check(f"{prefix}/object_score_logits", found.object_score_logits)
    check(f"{prefix}/obj_ptr", found.obj_ptr)
    if f"{prefix}/maskmem_features" in stored:
        check(f"{prefix}/maskmem_features", memory.map)
    if f"{prefix}/maskmem_abs_mean" in stored:
        mean = np.abs(np.asarray(memory.map)).mean()
        np.testing.assert_allclose(mean, stored[f"{prefix}/maskmem_abs_mean"], atol=1e-5)


@pytest.fixture(scope="module")
def video():
    return Video(golden_params())


@pytest.mark.parametrize(
    "name, prompt, count",
    [
        ("obj1", "mask_inputs", 4),
        pytest.param("obj2", "point", 3, marks=pytest.mark.slow),
        pytest.param("empty_mask", "empty", 2, marks=pytest.mark.slow),
    ],
)
def test_four_frames(video, name, prompt, count):
    for number, found, memory, bank in video.run(range(count), {0: prompt}, 4):
        check_frame(f"{name}/frame{number}", found, memory)
        path = f"{name}/frame{number}/pix_feat_with_mem"
        if number and path in arrays("video"):
            seen = video.call("with_memory", video.features(number), bank, number, 4)
            check(path, seen.coarse)


@pytest.mark.slow
def test_memory_and_attention(video):
    """Keys, values and layers of frame 2; order of the slots aside, they are the original's."""
    *_, (_, _, _, bank) = video.run(range(3), {0: "mask_inputs"}, 4)
    seen, state = video.call(
        "with_memory", video.features(2), bank, np.int32(2), np.int32(4), mutable="intermediates"
    )
    for i in range(2):
        layer = state["intermediates"]["memory_attention"][f"layer{i}"][0]
        check(f"obj1/frame2/memory_attention_layer{i}", layer)
    found = recall(bank, 2, 4, 7, 16)
    memory, positions, masked = video.call("memory_tokens", found, np.int32(4))
    real = ~np.asarray(masked[0])
    check("obj1/frame2/memory", np.asarray(memory[0])[real])
    check("obj1/frame2/memory_pos", np.asarray(positions[0])[real])


@pytest.mark.slow
def test_an_object_that_disappears():
    """Given as a mask, then never visible: the embedding of "no object" in memory and pointer."""
    clip = Video(golden_params(-1.5))
    for number, found, memory, _ in clip.run(range(3), {0: "mask_inputs"}, 4):
        check_frame(f"absent/frame{number}", found, memory)
        if number:
            assert found.object_score_logits[0, 0] < 0


@pytest.mark.slow
def test_two_objects_at_once(video):
    """Given as masks; both share the features of a frame."""
    masks, both = np.concatenate([disk(), disk(0.7, 0.3, 0.12)]), np.ones(2, bool)
    features = video.features(0, 2)
    found = video.call("accept_masks", features, masks)
    memory = video.call("encode_memory", features, found, np.float32(20 * masks - 10))
    check_frame("batch2/frame0", found, memory)
    bank = video.call("new_bank", memory, num_prompted=1)
    bank = remember_prompted(bank, memory, np.int32(0), both)
    for number in (1, 2):
        index = np.int32(number)
        found, memory = video.call("follow", video.features(number, 2), bank, index, np.int32(4))
        bank = remember(bank, memory, index, both)
        check_frame(f"batch2/frame{number}", found, memory)


def test_a_click_corrects_a_tracked_frame():
    """Object 2 of the original's predictor: memory, the first pass's mask, a click beside it."""
    stored, clip = arrays("video"), Video(golden_params(), memory_dtype="bfloat16")
    on, beside, new = np.int32([[1]]), np.int32([[0]]), np.ones(1, bool)

    def scaled(name):
        return (stored[f"predictor/{name}"] / [80, 60] * SIDE).astype(np.float32)[None]

    features = clip.features(0)
    prompt = scaled("point_prompt_xy_video_pixels"), on, np.zeros((1, 64, 64), np.float32), ~new
    found = clip.call("segment", clip.call("without_memory", features), *prompt)
    memory = clip.call("encode_memory", features, found)
    bank = clip.call("new_bank", memory, num_prompted=1)
    bank = remember_prompted(bank, memory, np.int32(0), new)
    _, memory = clip.call("follow", clip.features(1), bank, np.int32(1), np.int32(4))
    bank = remember(bank, memory, np.int32(1), new)
    seen = clip.call("with_memory", clip.features(2), bank, np.int32(2), np.int32(4))
    before, _ = clip.call("follow", clip.features(2), bank, np.int32(2), np.int32(4))
    low = np.clip(before.low_res_mask, -32, 32)
    found = clip.call("segment", seen, scaled("correction_click_xy"), beside, low, new)
    logits = np.asarray(resize_bilinear(found.low_res_mask[..., None], (60, 80)))[0, ..., 0]
    expected = stored["predictor/after_correction"][1, 0]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=6e-4)
    tracked = stored["predictor/frame2/video_res_logits"][1, 0]
    assert np.abs(expected - tracked).max() > 1  # the click matters


RUNS = ["long_default", "long_smallmem", "long_stride2_cap2", "reverse"]
FIELDS = {
    "num_maskmem": "num_maps",
    "max_obj_ptrs_in_encoder": "num_pointers",
    "max_cond_frames_in_attn": "max_prompted",
    "memory_temporal_stride_for_eval": "map_stride",
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "long_default" else pytest.mark.slow) for n in RUNS]
)
def test_twelve_frames(video, name):
    """Prompts at several frames, small memories, strides, a cap, and backwards."""
    facts = meta("video")["runs"][name]
    fields = {FIELDS[key]: value for key, value in facts["settings"].items()}
    params = dict(golden_params())
    if "num_maps" in fields:
        params["maskmem_tpos_enc"] = params["maskmem_tpos_enc"][: fields["num_maps"]]
    clip = Video(params, **fields) if fields else video
    prompts = {int(frame): kinds[0] for frame, kinds in facts["prompts"].items()}
    reverse = facts["track_in_reverse"]
    for number, found, memory, _ in clip.run(facts["order"], prompts, 12, reverse):
        check_frame(f"{name}/frame{number}", found, memory)


def test_rotation_depends_on_the_distance_alone():
    """Equal positions cancel, and the table repeats along the memories."""
    rng = np.random.default_rng(0)
    q, k = (jnp.float32(rng.normal(size=(1, 12, 1, 16))) for _ in range(2))
    angles = axial_angles(3, 4, 16)
    products = jnp.einsum("nqgc,nqgc->nq", q, k)
    turned = jnp.einsum("nqgc,nqgc->nq", rotate(q, angles), rotate(k, angles))
    np.testing.assert_allclose(turned, products, atol=1e-5)
    twice = rotate(jnp.tile(k, (1, 2, 1, 1)), angles)
    np.testing.assert_array_equal(twice[:, 12:], twice[:, :12])
    np.testing.assert_array_equal(twice[:, :12], rotate(k, angles))
    # Token 6 is in column 2, row 1: the first pair turns by 2, the fifth by 1.
    np.testing.assert_allclose(angles[6, [0, 4]], [2, 1])
    x = np.zeros((1, 12, 1, 16), np.float32)
    x[0, 6, 0, 0] = 1
    found = rotate(jnp.asarray(x), angles)[0, 6, 0, :2]
    np.testing.assert_allclose(found, [np.cos(2), np.sin(2)], atol=1e-6)


def test_times_of_pointers():
    found = arrays("video")
    code = time_code(jnp.float32(found["get_1d_sine_pe/positions"]), 16)
    np.testing.assert_allclose(code, found["get_1d_sine_pe/dim16"], atol=1e-5)


def test_short_clips_divide_times_by_their_length(video):
    """Pointers of a clip of 5 frames: distance / 4; of 100 frames: distance / 15."""
    *_, (_, _, _, bank) = video.run(range(3), {0: "mask_inputs"}, 4)
    found = recall(bank, 2, 4, 7, 16)
    projection = golden_params()["obj_ptr_tpos_proj"]
    for num_frames, divisor in ((5, 4), (100, 15)):
        _, positions, _ = video.call("memory_tokens", found, np.int32(num_frames))
        code = time_code(found.pointer_steps[0] / divisor, 64)
        expected = code @ projection["kernel"] + projection["bias"][None]
        pointers = positions[0, -4 * len(expected) :: 4]
        np.testing.assert_allclose(pointers, expected, atol=1e-5)


def test_closest_prompted_frames():
    stored = jnp.array([[0, 2, 4, 6, 9, EMPTY]])
    for case in meta("video")["select_closest_cond_frames_of_0_2_4_6_9"]:
        found = closest(stored, case["frame"], case["max"])[0]
        assert set(np.asarray(stored[0])[np.asarray(found)]) == set(case["selected"])
    assert closest(stored, 3, 0)[0].tolist() == [True] * 5 + [False]


def remembered(frames, stride=1, num_maps=4, num_pointers=5):
    """A bank of maps and pointers that hold the number of their frame."""

    def memory(number):
        return Memory(jnp.full((1, 1, 1, 1), float(number)), jnp.full((1, 2), float(number)))

    bank, new = empty_bank(memory(0), 2, num_maps, num_pointers, stride), jnp.array([True])
    for number in frames:
        put = remember_prompted if number == 0 else remember
        bank = put(bank, memory(number), number, new)
    return recall(bank, len(frames), 100, num_maps, num_pointers, stride)


@pytest.mark.parametrize("stride, maps", [(1, {0, 7, 8, 9}), (2, {0, 9, 8, 6})])
def test_what_is_recalled(stride, maps):
    """Frame 10 of a clip with a prompt on frame 0, three maps and four pointers back."""
    found = remembered(range(10), stride)
    kept = np.asarray(found.maps[0, :, 0, 0, 0])[np.asarray(found.has_map[0])]
    assert set(kept) == maps
    ages = dict(zip(kept, np.asarray(found.map_ages[0])[np.asarray(found.has_map[0])], strict=True))
    assert ages[0] == 3 and ages[9] == 0
    has, steps = np.asarray(found.has_pointer[0]), np.asarray(found.pointer_steps[0])
    pointers = np.asarray(found.pointers[0, :, 0])
    assert set(pointers[has]) == {0, 6, 7, 8, 9}
    np.testing.assert_array_equal(10 - pointers[has], steps[has])
