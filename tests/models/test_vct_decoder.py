"""The decoder against the original: every layer, every prediction, every attention mask."""

import numpy as np
import pytest

from avs_jax.models.decoders.vct_decoder import attention_mask, free_full_rows
from tests.golden.compare import assert_golden
from tests.vct_golden import channels_first, golden, tiny_model, tiny_outputs

OVERRIDE = "allmasked/override/sem_seg_head.predictor.mask_embed.layers.2.bias"


def allmasked_outputs():
    """golden_tiny_ms3 with a mask bias that masks many rows entirely."""
    apply, params = tiny_model("ms3")
    predictor = params["predictor"]
    last = predictor["mask_embed"]["layers_2"] | {"bias": golden("ms3")[OVERRIDE]}
    mask_embed = predictor["mask_embed"] | {"layers_2": last}
    return apply(params | {"predictor": predictor | {"mask_embed": mask_embed}})


@pytest.fixture(
    scope="module",
    params=(
        "s4",
        pytest.param("ms3", marks=pytest.mark.slow),
        pytest.param("ss", marks=pytest.mark.slow),
        "allmasked",
    ),
)
def case(request):
    """Golden arrays, prefix of their names, our outputs."""
    if request.param == "allmasked":
        arrays = golden("ms3")
        prefix = "allmasked/"
        cut = {k.removeprefix(prefix): x for k, x in arrays.items() if k.startswith(prefix)}
        return cut | {"meta/noise_json": arrays["meta/noise_json"]}, allmasked_outputs()
    return golden(request.param), tiny_outputs(request.param)


def stored(arrays, name):
    return name in arrays or f"{name}/sample" in arrays


def test_attention_masks_are_equal(case):
    arrays, outputs = case
    masks = outputs["intermediates"]["decoder"]["attn_mask"]
    assert [mask is None for mask in masks] == [i % 4 == 0 for i in range(9)]
    for i, mask in enumerate(masks):
        if mask is None:
            continue
        assert mask.shape == tuple(arrays[f"pred/{i}/attn_mask_shape"])
        np.testing.assert_array_equal(np.packbits(mask), arrays[f"pred/{i}/attn_mask_bits"])
        full = np.argwhere(np.asarray(mask).all(-1))
        np.testing.assert_array_equal(full, arrays[f"pred/{i}/attn_mask_all_masked_rows"])


def test_layers(case):
    arrays, outputs = case
    seen = outputs["intermediates"]["decoder"]
    compared = 0
    for stage in ("cross", "self", "ffn"):
        for i, query in enumerate(seen[stage]):
            if stored(arrays, f"decoder/{stage}.{i}"):
                assert_golden(arrays, f"decoder/{stage}.{i}", np.swapaxes(query, 0, 1))
                compared += 1
    assert compared >= 9


def test_predictions(case):
    arrays, outputs = case
    predictions = [*outputs["aux_outputs"], outputs]
    assert len(predictions) == 10
    for i, prediction in enumerate(predictions):
        logits = np.asarray(prediction["pred_logits"])
        assert_golden(arrays, f"pred/{i}/logits", logits.reshape(-1, *logits.shape[2:]))
        assert_golden(arrays, f"pred/{i}/masks", channels_first(prediction["pred_masks"]))


@pytest.mark.parametrize("name", ["s4", pytest.param("ss", marks=pytest.mark.slow)])
def test_embeddings_of_the_prototype_loss(name):
    arrays, outputs = golden(name), tiny_outputs(name)
    assert_golden(arrays, "out/audio_embed", outputs["audio_embed"].reshape(-1, 256))
    spread = np.broadcast_to(outputs["proto_embed"], tuple(arrays["out/proto_embed/shape"]))
    assert_golden(arrays, "out/proto_embed", spread)


def test_no_embeddings_without_prototypes():
    assert not {"audio_embed", "proto_embed", "logit_scale"} & set(tiny_outputs("ms3"))


def test_attention_mask_blocks_negative_logits_and_frees_full_rows():
    masks = np.full((1, 2, 2, 3), -1.0, np.float32)
    masks[0, 0, 1, 1] = 2.0
    masks[..., 2] = 0.0
    blocked = attention_mask(masks, (2, 2))
    np.testing.assert_array_equal(blocked[0], [[1, 1, 1, 1], [1, 0, 1, 1], [0, 0, 0, 0]])
    freed = free_full_rows(blocked)
    np.testing.assert_array_equal(freed[0], [[0, 0, 0, 0], [1, 0, 1, 1], [0, 0, 0, 0]])
