"""The Python interface against the original's predictors, and what it does beyond them."""

import numpy as np
import pytest
from flax import traverse_util

from avs_jax.data.prompts import (
    Prompt,
    complete_arrays,
    resize_frame,
    stack_language,
    stack_prompts,
)
from avs_jax.inference.sam2 import Sam2, fill_holes
from avs_jax.models import build_model
from avs_jax.models.sam2.model import SAM2
from avs_jax.ops.sampling import resize_bilinear
from avs_jax.spec import InputError
from configs.sam2 import sam2_config, vary
from tests.sam2_golden import SIDE, SMALL, arrays, frame, golden_params, param_shapes


class Frames(Sam2):
    """Takes normalized pixels [S, S, 3] for frames of 60 x 80 px, as the golden video has them."""

    def _features(self, image, resize):
        return self._call("encode_images", self.pixels[int(image[0, 0, 0])][None])


def make(kind=Sam2, **data):
    config = sam2_config("tiny")
    config.data.update({"image_size": SIDE, "max_hole_area": 0} | data)
    config.model.update(SMALL | {"memory_dtype": "bfloat16"})
    return kind(config, golden_params())


@pytest.fixture(scope="module")
def sam2():
    return make()


def stored(path):
    return arrays("image")[f"predictor/{path}"]


def test_images_are_resized_as_by_the_image_predictor():
    found = resize_frame(stored("picture"), SIDE, "bilinear")
    expected = np.moveaxis(stored("preprocessed_sub4"), 1, -1)[0]
    np.testing.assert_allclose(found[::4, ::4], expected, rtol=0, atol=5e-6)


def test_frames_are_resized_as_by_the_video_loader():
    found = arrays("video")
    for rgb, expected in zip(
        found["frame_loader/rgb_uint8"], found["frame_loader/normalised_32"], strict=True
    ):
        resized = resize_frame(rgb, 32, "bicubic")
        np.testing.assert_allclose(np.moveaxis(resized, -1, 0), expected, rtol=0, atol=2e-6)


@pytest.mark.slow
def test_image_predictor(sam2):
    picture, points, labels = stored("picture"), stored("points"), stored("labels")
    first = Prompt(points=points[:1].tolist())
    found = sam2.predict_image(picture, first)
    np.testing.assert_allclose(found.ious, stored("points_multi/iou"), atol=1e-5)
    np.testing.assert_allclose(
        found.logits[:, ::3, ::3], stored("points_multi/logits_sub3"), atol=4e-4
    )
    np.testing.assert_allclose(
        found.low_res_masks[:, ::2, ::2], stored("points_multi/low_res_sub2"), atol=4e-4
    )
    both = Prompt(points=points.tolist(), labels=labels.tolist(), box=stored("box").tolist())
    again = sam2.predict_image(picture, both)
    np.testing.assert_allclose(
        again.logits[:, ::3, ::3], stored("points_box_single/logits_sub3"), atol=4e-4
    )
    assert again.masks.shape == (1, 90, 120)
    low = again.low_res_masks
    np.testing.assert_allclose(
        low[:, ::2, ::2], stored("points_box_single/low_res_sub2"), atol=4e-4
    )
    clicks = Prompt(points=points.tolist(), labels=labels.tolist())
    corrected = sam2.predict_image(picture, clicks, low_res_mask=low[0])
    np.testing.assert_allclose(corrected.ious, stored("with_mask_input/iou"), atol=1e-5)
    np.testing.assert_allclose(
        corrected.logits[:, ::3, ::3], stored("with_mask_input/logits_sub3"), atol=4e-4
    )


@pytest.mark.slow
def test_video_predictor():
    """A mask and a click on frame 0, followed through four frames.

    The original's second pass is that of the first, although a click corrected frame 2 in between:
    a frame that tracking has seen is predicted again, without its click.
    """
    found = arrays("video")
    sam2 = make(Frames)
    sam2.pixels = [frame(number)[0] for number in range(4)]
    frames = [np.full((60, 80, 3), number, np.uint8) for number in range(4)]
    click = Prompt(points=found["predictor/point_prompt_xy_video_pixels"].tolist())
    prompts = {0: {"1": Prompt(mask=found["predictor/mask_prompt"]), "2": click}}
    for tracked in sam2.track(frames, prompts):
        for i, name in enumerate(("1", "2")):
            here = f"predictor/frame{tracked.number}"
            expected = found[f"{here}/video_res_logits"][i, 0]
            np.testing.assert_allclose(tracked.logits[name], expected, rtol=0, atol=6e-4)
            again = found.get(f"predictor/second_pass/frame{tracked.number}/video_res_logits")
            if again is not None:
                np.testing.assert_allclose(tracked.logits[name], again[i, 0], rtol=0, atol=6e-4)
            score = found[f"{here}/obj{name}_object_score_logits"][0, 0]
            np.testing.assert_allclose(tracked.object_scores[name], score, atol=2e-5)
    assert {path.split("/")[2] for path in found if "second_pass" in path} == {"frame2", "frame3"}


def clip(count):
    rng = np.random.default_rng(3)
    return [rng.integers(0, 255, (48, 64, 3), dtype=np.uint8) for _ in range(count)]


@pytest.fixture(scope="module")
def small():
    """A random model of 64 px: quick."""
    config = vary(sam2_config("tiny"), "tiny")
    model = build_model(config.model, SAM2)
    rng = np.random.default_rng(1)
    flat = {
        path: rng.standard_normal(shape).astype(np.float32) / max(1, shape[0]) ** 0.5
        for path, shape in param_shapes(model).items()
    }
    return Sam2(config, traverse_util.unflatten_dict(flat, sep="/"))


@pytest.mark.slow
def test_a_long_video_takes_one_program_and_one_size(small):
    """Every frame after the first runs the same program on a bank of the same shape."""
    prompts = {0: {"a": Prompt(points=[(9, 9)])}, 3: {"b": Prompt(box=(1, 2, 30, 40))}}
    numbers = [found.number for found in small.track(clip(40), prompts)]
    assert numbers == list(range(40))
    assert small._jitted["follow"]._cache_size() == 1
    assert small._jitted["encode_images"]._cache_size() == 1


@pytest.mark.slow
def test_a_stream_is_read_once_and_a_list_twice(small):
    """In a stream, a prompt acts from its frame on; in a list, earlier frames see it too."""
    frames = clip(4)
    early, late = {0: {"a": Prompt(points=[(9, 9)])}}, {2: {"a": Prompt(points=[(30, 20)])}}
    once = list(small.track(iter(frames), early | late, num_frames=4))
    twice = list(small.track(frames, early | late))
    alone = list(small.track(frames, early))
    np.testing.assert_array_equal(once[1].logits["a"], alone[1].logits["a"])
    assert np.abs(twice[1].logits["a"] - alone[1].logits["a"]).max() > 1e-3
    np.testing.assert_array_equal(once[2].logits["a"], twice[2].logits["a"])


@pytest.mark.slow
def test_objects_are_absent_before_the_first_prompt(small):
    found = list(small.track(clip(3), {1: {"a": Prompt(points=[(9, 9)])}}))
    assert not found[0].masks["a"].any() and found[0].object_scores["a"] == -1024


@pytest.mark.slow
def test_objects_do_not_depend_on_each_other(small):
    one, two = {"a": Prompt(points=[(9, 9)])}, {"b": Prompt(points=[(50, 9)])}
    both = list(small.track(clip(3), {0: one | two}))
    alone = list(small.track(clip(3), {0: one}))
    for x, y in zip(both, alone, strict=True):
        np.testing.assert_allclose(x.logits["a"], y.logits["a"], atol=1e-3)


def test_an_object_of_a_stream_begins_with_its_own_prompt(small):
    one, two = {"a": Prompt(points=[(9, 9)])}, {"b": Prompt(points=[(50, 9)])}
    both = list(small.track(iter(clip(6)), {0: one, 3: two}, num_frames=6))
    alone = list(small.track(iter(clip(6)), {3: two}, num_frames=6))
    for x, y in zip(both, alone, strict=True):
        np.testing.assert_allclose(x.logits["b"], y.logits["b"], atol=1e-3)
        assert x.ious["b"] == pytest.approx(y.ious["b"], abs=1e-4)
    assert (both[2].logits["b"] == both[2].logits["b"].min()).all() and not both[2].masks["b"].any()
    assert (both[3].logits["b"] != both[2].logits["b"]).any()


@pytest.mark.parametrize(
    "prompts, message",
    [
        ({}, "nothing to track"),
        ({7: {"a": Prompt(points=[(1, 1)])}}, "frame 7: the video has 2 frames, numbered from 0"),
        ({-1: {"a": Prompt(points=[(1, 1)])}}, "frame -1 of a prompt: expected a whole number"),
        ({"0": {"a": Prompt(points=[(1, 1)])}}, "frame '0' of a prompt: expected a whole number"),
        (
            {0: {"a": Prompt(points=[(64.5, 1)])}},
            "object 'a', frame 0: point .64.5, 1. is outside the frame, 64 x 48 px",
        ),
        ({0: {"a": Prompt(box=(70, 1, 90, 9))}}, "'a', frame 0: box .* is outside the frame"),
        ({0: {"a": Prompt(mask=np.ones((5, 5)))}}, "a mask of .5, 5. on a frame of .48, 64."),
    ],
)
def test_prompts_that_do_not_fit(small, prompts, message):
    with pytest.raises(InputError, match=message):
        list(small.track(clip(2), prompts))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({}, "without points, box, mask or language"),
        ({"language": np.zeros(3)}, "expected floats .L, D."),
        ({"language": np.full((1, 3), np.inf)}, "NaN or infinite"),
        ({"language": np.ones((1, 3)), "mask": np.ones((2, 2))}, "leave out points"),
        ({"points": [(1, 1)], "labels": [2]}, "expected 0 or 1"),
        ({"points": [(1, float("nan"))]}, "NaN"),
        ({"points": [(1, 2, 3)]}, "point .1, 2, 3.: expected numbers .x, y."),
        ({"points": [(1, 2)] * 2000}, "2,000 points: expected at most 1,024"),
        ({"box": np.float32([5, 2, 3, 9])}, "expected left <= right and top <= bottom"),
        ({"box": (1, 2, 3)}, "expected numbers .left, top, right, bottom"),
        ({"points": [(1, 1)], "mask": np.ones((2, 2))}, "leave out points"),
    ],
)
def test_a_prompt_names_what_is_wrong(fields, message):
    with pytest.raises(InputError, match=message):
        Prompt(**fields)


def test_prompts_are_scaled_and_filled():
    prompts = [Prompt(points=[(32, 24)], labels=[0], box=(0, 0, 64, 48)), None]
    found = stack_prompts(prompts, (48, 64), 128)
    np.testing.assert_array_equal(found["point_labels"], [[2, 3, 0, -2], [-2] * 4])
    np.testing.assert_allclose(found["points"][0, :3], [[0, 0], [128, 128], [64, 64]])
    assert not found["mask_given"].any()
    arrays = Prompt(points=np.float32([[32, 24]]), labels=np.int32([0]), box=np.arange(4))
    assert stack_prompts([arrays], (48, 64), 128)["point_labels"].tolist() == [[2, 3, 0, -2]]


@pytest.mark.slow
def test_language_asks_as_points_do(small):
    """Other tokens, another answer; the decoder's width is checked."""
    frames, rng = clip(2), np.random.default_rng(5)
    asked = [Prompt(language=rng.normal(scale=30, size=(count, 32))) for count in (1, 1, 3)]
    found = [next(iter(small.track(iter(frames), {0: {"a": prompt}}))) for prompt in asked]
    scores = [frame.object_scores["a"] for frame in found]
    assert len(set(np.round(scores, 5))) == 3
    padded = stack_language([asked[2], None], 32)
    assert padded[0].shape == (2, 4, 32)
    assert padded[1].tolist() == [[True, True, True, False], [False] * 4]
    assert stack_language([None, Prompt(points=[(1, 1)])], 32) is None
    with pytest.raises(InputError, match="3 numbers per token: the model reads 32"):
        list(small.track(frames, {0: {"a": Prompt(language=np.ones((1, 3)))}}))


@pytest.mark.slow
def test_hidden_states_ask_as_their_tokens_do(small):
    """With Sa2VA's projection, --language holds hidden states."""
    config, rng = small.config.copy_and_resolve_references(), np.random.default_rng(6)
    config.model.language_dim = 6
    shapes = {"layers_0": (6, 6), "layers_2": (6, 32)}
    projection = {
        name: {
            "kernel": rng.normal(size=shape).astype(np.float32),
            "bias": rng.normal(size=shape[1:]).astype(np.float32),
        }
        for name, shape in shapes.items()
    }
    reading = Sam2(config, dict(small._params) | {"text_hidden_fcs": projection})
    states = rng.normal(size=(2, 6)).astype(np.float32)
    tokens = np.asarray(reading._call("project_language", states[None]))[0]
    frames = clip(2)
    asked = list(reading.track(frames, {0: {"a": Prompt(language=states)}}))
    told = list(small.track(frames, {0: {"a": Prompt(language=tokens)}}))
    for x, y in zip(asked, told, strict=True):
        np.testing.assert_allclose(x.logits["a"], y.logits["a"], atol=1e-5)
    with pytest.raises(InputError, match="32 numbers per token: the model reads 6"):
        list(reading.track(frames, {0: {"a": Prompt(language=tokens)}}))


def test_small_holes_are_filled():
    logits = np.full((2, 12, 12), -3, np.float32)
    logits[0, 1:11, 1:11] = 2
    logits[0, 4, 4] = logits[0, 5, 5] = -1  # one hole of two cells that touch at a corner
    logits[0, 8, 2:9] = -1
    found = fill_holes(logits, 2)
    assert (found[0, [4, 5], [4, 5]] == np.float32(0.1)).all()
    assert (found[0, 8, 2:9] == -1).all() and (found[0, 0] == -3).all()
    np.testing.assert_array_equal(found[1], logits[1])
    assert (fill_holes(logits, 0) == logits).all()


@pytest.mark.slow
def test_arrays_are_tracked_as_a_video(small):
    """The whole clip in one program gives what `track` gives, for two objects."""
    rng, side = np.random.default_rng(3), small.config.data.image_size
    frames = rng.integers(0, 255, (3, side, side, 3), dtype=np.uint8)
    mask = np.zeros((side, side), np.uint8)
    mask[10:30, 5:40] = 1
    prompts = {1: {"a": Prompt(points=[(9, 9)])}, 2: {"b": Prompt(mask=mask > 0)}}
    small.config.data.max_hole_area = 0
    tracked = list(small.track(list(frames), prompts))
    given = {
        "images": frames[None],
        "points": np.full((1, 3, 2, 1, 2), 9, np.float32),
        "point_labels": np.full((1, 3, 2, 1), -2, np.int32),
        "masks": np.zeros((1, 3, 2, side, side), np.uint8),
    }
    given["point_labels"][0, 1, 0] = 1
    given["masks"][0, 2, 1] = mask
    inputs, _ = complete_arrays(given, side, "bicubic", 4)
    outputs = small._call("__call__", inputs)
    for number, found in enumerate(tracked):
        low = np.moveaxis(outputs["low_res_mask"][0, number], 0, -1)
        logits = np.asarray(resize_bilinear(low, (side, side)))
        for i, name in enumerate(("a", "b")):
            np.testing.assert_allclose(logits[..., i], found.logits[name], atol=2e-3)
            score = outputs["object_score_logits"][0, number, i, 0]
            np.testing.assert_allclose(score, found.object_scores[name], atol=1e-4)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"points": None}, "point_labels belong together"),
        ({"images": None}, "give images or pixels"),
        ({"point_labels": np.full((1, 2, 1, 1), 7, np.int32)}, "expected 1 on the object"),
        ({"point_labels": np.full((1, 2, 1, 1), -2, np.int32)}, "prompts on .0. frames"),
        (
            {"points": np.full((1, 2, 1, 1, 2), 40, np.float32)},
            "clip 0, frame 0 of 32 x 32 px, object 0: a point is outside",
        ),
        (
            {"boxes": np.float32([[[[0, 0, 0, 0]], [[9, 0, 3, 5]]]])},
            "frame 1 of 32 x 32 px, object 0: a box needs left <= right",
        ),
        ({"masks": np.ones((1, 2, 1, 32, 32), np.uint8)}, "give a mask or points, not both"),
    ],
)
def test_arrays_that_do_not_fit(changes, message):
    given = {
        "images": np.zeros((1, 2, 32, 32, 3), np.uint8),
        "points": np.ones((1, 2, 1, 1, 2), np.float32),
        "point_labels": np.ones((1, 2, 1, 1), np.int32),
    } | changes
    with pytest.raises(InputError, match=message):
        complete_arrays({k: x for k, x in given.items() if x is not None}, 32, "bicubic", 1)
