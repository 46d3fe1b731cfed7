"""SAM2 of all sizes against transformers' port, an implementation of its own: image and video.

Weights follow from the names and go through the converter. Needs torch and transformers (extra
`benchmark`).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from avs_jax.convert.rules import apply_rules
from avs_jax.convert.sam2_names import original_layout, original_name, sam2_rules
from avs_jax.models import build_model
from avs_jax.models.sam2.bank import remember_prompted
from avs_jax.models.sam2.model import SAM2
from configs.sam2 import sam2_config, vary
from tests.golden.refer.weights import refer_value
from tests.golden.weights import rand_input
from tests.sam2_golden import SCORE_BIAS, param_shapes

pytestmark = pytest.mark.slow

SIDE = 256
IMAGE_TOLERANCE = 5e-4  # of logits up to 200
VIDEO_TOLERANCE = 5e-3  # both round memories to bfloat16, where one unit may flip
CASES = [("tiny", ""), ("tiny", "v2.0"), ("small", ""), ("base_plus", ""), ("large", "")]


def golden_state(state):
    """{name: array} by the goldens' rule, for a state dict of transformers."""
    arrays = {}
    for name, tensor in state.items():
        shape = tuple(tensor.shape)
        if name.endswith(".point_embed.weight"):
            prefix = "sam_prompt_encoder.point_embeddings"
            rows = [refer_value(f"{prefix}.{i}.weight", (1, shape[1])) for i in range(4)]
            arrays[name] = np.concatenate(rows)
        else:
            arrays[name] = np.asarray(refer_value(original_name(name), shape))
        if original_name(name) == SCORE_BIAS:
            arrays[name] = np.full_like(arrays[name], 0.5)
    return arrays


@pytest.mark.parametrize("size, version", CASES)
def test_agrees_with_transformers(size, version):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

    from scripts.sam2_transformers import video_config, vision_config

    config = vary(sam2_config(size), version).model
    tracker = transformers.Sam2VideoModel(video_config(config, SIDE)).eval()
    arrays = golden_state(tracker.state_dict())
    tracker.load_state_dict({name: torch.from_numpy(x.copy()) for name, x in arrays.items()})
    image_config = transformers.Sam2Config(
        vision_config=vision_config(config, SIDE),
        prompt_encoder_config=transformers.Sam2PromptEncoderConfig(image_size=SIDE),
    )
    segmenter = transformers.Sam2Model(image_config).eval()
    kept = {name: torch.from_numpy(arrays[name].copy()) for name in segmenter.state_dict()}
    segmenter.load_state_dict(kept)

    model = build_model(config, SAM2)
    tree = apply_rules(original_layout(arrays), sam2_rules(), param_shapes(model))
    params = {"params": jax.tree.map(jnp.asarray, traverse_util.unflatten_dict(tree, sep="/"))}

    @functools.partial(jax.jit, static_argnames="method")
    def call(method, *args):
        return model.apply(params, *args, method=method)

    frames = rand_input(4000, (1, 3, SIDE, SIDE))
    frames = np.concatenate([frames, frames + np.float32(0.5) * rand_input(4001, frames.shape)])
    pixels = torch.from_numpy(frames)
    xy = np.float32([[[80, 160]]])
    points = torch.from_numpy(xy)[None]
    labels = torch.ones((1, 1, 1), dtype=torch.int32)
    first, second = (call("encode_images", np.moveaxis(x, 0, -1)[None]) for x in frames)

    with torch.inference_mode():
        maps = tracker.get_image_features(pixels[:1]).fpn_hidden_states
        for map_, ours in zip(maps, (first.fine, first.middle, first.coarse), strict=True):
            ours = np.asarray(ours).reshape(-1, ours.shape[-1])
            np.testing.assert_allclose(ours, map_[:, 0].numpy(), atol=1e-4)
        found = segmenter(pixel_values=pixels[:1], input_points=points, input_labels=labels)
        session = Sam2VideoInferenceSession(
            video=pixels, video_height=SIDE, video_width=SIDE, dtype=torch.float32
        )
        index = session.obj_id_to_idx(1)
        session.add_point_inputs(index, 0, {"point_coords": points, "point_labels": labels})
        session.obj_with_new_inputs = [1]
        tracked = [tracker(session, frame_idx=i) for i in range(2)]

    low, none = np.zeros((1, SIDE // 4, SIDE // 4), np.float32), np.zeros(1, bool)
    padded = np.pad(xy, ((0, 0), (0, 1), (0, 0))), np.int32([[1, -1]])
    decoded = call("decode_image", first, *padded, low, none)
    masks = np.moveaxis(np.asarray(decoded.masks[0, ..., 1:]), -1, 0)
    np.testing.assert_allclose(masks, found.pred_masks[0, 0].numpy(), atol=IMAGE_TOLERANCE)
    np.testing.assert_allclose(decoded.ious[0, 1:], found.iou_scores[0, 0].numpy(), atol=1e-5)

    blank = np.zeros((1, SIDE, SIDE), bool)
    segments, memory = call("start", first, xy, np.int32([[1]]), blank, none)
    bank = model.apply(params, memory, 1, method="new_bank")
    bank = remember_prompted(bank, memory, np.int32(0), np.ones(1, bool))
    later, _ = call("follow", second, bank, np.int32(1), np.int32(2))
    for ours, other, tolerance in (
        (segments, tracked[0], IMAGE_TOLERANCE),
        (later, tracked[1], VIDEO_TOLERANCE),
    ):
        mask = np.asarray(ours.low_res_mask)[0]
        assert np.abs(mask).max() < 1000  # the object is visible
        np.testing.assert_allclose(mask, other.pred_masks[0, 0].numpy(), atol=tolerance)
        score = other.object_score_logits.numpy().reshape(-1)
        np.testing.assert_allclose(ours.object_score_logits[0], score, atol=tolerance)
