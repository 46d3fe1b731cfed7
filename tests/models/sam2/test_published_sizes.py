"""The four published SAM2.1 at 1024 px against the original: a click, then a tracked frame.

Weights follow from the names; the stored arrays are samples by stride.
"""

import functools

import jax
import numpy as np
import pytest
from flax import traverse_util

from avs_jax.convert.rules import apply_rules
from avs_jax.convert.sam2_names import sam2_rules
from avs_jax.models import build_model
from avs_jax.models.sam2.bank import remember_prompted
from avs_jax.models.sam2.model import SAM2
from configs.sam2 import sam2_config
from tests.golden.refer.weights import refer_value
from tests.golden.weights import rand_input
from tests.sam2_golden import SCORE_BIAS, assert_golden, name_tables, param_shapes

check = functools.partial(assert_golden, "fullsize", floor=5e-5 / 10)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["tiny", "small", "base_plus", "large"])
def test_click_and_track(size):
    config = sam2_config(size).model
    config.update(memory_dtype="float32", stability_threshold=0.0)
    model = build_model(config, SAM2)
    state = {name: refer_value(name, shape) for name, shape in name_tables()[size]["names"]}
    state[SCORE_BIAS] = np.full_like(state[SCORE_BIAS], 0.5)
    tree = apply_rules(state, sam2_rules(), param_shapes(model))
    params = {"params": traverse_util.unflatten_dict(tree, sep="/")}

    def call(method, *args, **static):
        run = jax.jit(lambda params, *args: model.apply(params, *args, method=method, **static))
        return run(params, *args)

    first = rand_input(4000, (1, 3, 1024, 1024))
    second = first + np.float32(0.5) * rand_input(4001, first.shape)
    first, second = (np.moveaxis(x, 1, -1) for x in (first, second))
    features = call("encode_images", first)
    if size in ("tiny", "large"):
        check(f"{size}/fpn2_sub4", features.coarse)
    click = np.float32([[[300, 640]]]), np.int32([[1]])
    low, none = np.zeros((1, 256, 256), np.float32), np.zeros(1, bool)
    found = call("segment", call("without_memory", features), *click, low, none)
    memory = call("encode_memory", features, found)
    bank = call("new_bank", memory, num_prompted=1)
    bank = remember_prompted(bank, memory, np.int32(0), np.ones(1, bool))
    compare(f"{size}/frame0", found, memory)
    features = call("encode_images", second)
    numbers = np.int32(1), np.int32(2)
    seen = call("with_memory", features, bank, *numbers)
    check(f"{size}/frame1/pix_feat_with_mem_sub8", seen.coarse)
    compare(f"{size}/frame1", *call("follow", features, bank, *numbers))


def compare(prefix, found, memory):
    check(f"{prefix}/low_res_mask_sub4", found.low_res_mask)
    check(f"{prefix}/obj_ptr", found.obj_ptr)
    check(f"{prefix}/object_score_logits", found.object_score_logits)
    check(f"{prefix}/maskmem_features_sub8", memory.map)
