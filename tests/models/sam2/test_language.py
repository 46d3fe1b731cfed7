"""Tokens of a language model as prompts, against SALMA's SAM2.0: heads, and a whole video."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from avs_jax.convert.rules import apply_rules
from avs_jax.convert.sam2_names import sam2_rules
from avs_jax.models.sam2.bank import remember, remember_prompted
from avs_jax.models.sam2.mask_decoder import choose
from avs_jax.models.sam2.neck import ImageFeatures
from avs_jax.models.sam2.prompts import MoreTokens
from tests.golden.weights import rand_input
from tests.sam2_golden import assert_golden, golden_model, meta, param_shapes, state_dict

pytestmark = pytest.mark.slow

check = functools.partial(assert_golden, "language", floor=5e-6)
MEMORY_FLOOR = 1e-3  # a bfloat16 rounding of the memory may flip


@functools.cache
def model_and_params(memory_dtype="float32"):
    model = golden_model(
        codes_occlusion=False,
        codes_pointer_times=False,
        hides_absent=False,
        memory_dtype=memory_dtype,
    )
    tree = apply_rules(state_dict(model, None), sam2_rules(), param_shapes(model))
    return model, {"params": traverse_util.unflatten_dict(tree, sep="/")}


def drawn(name):
    """An input by the goldens' rule; maps become channel-last."""
    x = rand_input(*meta("language")["inputs"][name])
    return np.moveaxis(x, 1, -1) if x.ndim == 4 else x


def asked(tokens):
    return MoreTokens(tokens, np.ones(tokens.shape[:2], bool))


def nothing(count):
    low = np.zeros((count, 64, 64), np.float32)
    return np.zeros((count, 0, 2)), np.zeros((count, 0), np.int32), low, np.zeros(count, bool)


@pytest.mark.parametrize("tokens", ["none", "one_token", "three_tokens"])
def test_heads(tokens):
    """Language joins two tokens that are not a point; the original hides no mask."""
    model, params = model_and_params()
    names = ("host/high_res_s0", "host/high_res_s1", "host/backbone_features")
    features = ImageFeatures(*map(drawn, names))
    more = None if tokens == "none" else asked(drawn(f"host/language_{tokens}"))

    @jax.jit
    def decode(params, features, more):
        found = model.apply(params, features, *nothing(2), more, method="decode_tracked")
        answers = {}
        for kind in ("multi", "single"):
            is_ambiguous = jnp.full(2, kind == "multi")
            chosen = choose(found, is_ambiguous, stability_threshold=0.0)
            segments = model.apply(params, found, is_ambiguous, method="as_segments")
            answers[kind] = chosen.mask, segments.obj_ptr
        return found, answers

    found, answers = decode(params, features, more)
    for kind, (mask, pointer) in answers.items():
        here = f"heads/{tokens}/{kind}"
        check(f"{here}/low_res_masks_sub2", mask)
        check(f"{here}/obj_ptr", pointer)
        check(f"{here}/object_score_logits", found.object_score)
    check(f"heads/{tokens}/multi/ious", found.ious[:, 1:])


def test_language_on_five_frames_then_memory():
    """Each of the five is a first frame; the two behind them see their memories."""
    model, params = model_and_params("bfloat16")
    vectors = asked(drawn("language_inference/language")[:, None])
    jitted = {}

    def call(method, *args):
        if method not in jitted:
            jitted[method] = jax.jit(functools.partial(model.apply, method=method))
        return jitted[method](params, *args)

    bank, every = None, np.ones(2, bool)
    first = rand_input(3070, (1, 3, 256, 256))
    for number in range(7):
        frame = first + np.float32(0.5) * rand_input(3071 + number, first.shape)
        features = call("encode_images", np.moveaxis(frame, 1, -1))
        features = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), features)
        if number < 5:
            seen = call("without_memory", features)
            found = call("segment", seen, *nothing(2), every, vectors)
            memory = call("encode_memory", features, found)
            bank = bank or model.apply(params, memory, 5, method="new_bank")
            bank = remember_prompted(bank, memory, np.int32(number), every)
        else:
            found, memory = call("follow", features, bank, np.int32(number), np.int32(7))
            bank = remember(bank, memory, np.int32(number), every)
        here = f"language_inference/frame{number}"
        check(f"{here}/low_res_sub2", found.low_res_mask, floor=MEMORY_FLOOR)
        check(f"{here}/obj_ptr", found.obj_ptr, floor=MEMORY_FLOOR)
