"""SAM2 prompted by sounds: plain SAM2 without them, memory, padding, classes, its loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax.losses import prompted
from avs_jax.models import build_model
from avs_jax.models.inputs import prepare_images
from avs_jax.models.sam2.host import SAM2Host, class_scores
from avs_jax.models.sam2.model import SAM2, no_prompt
from avs_jax.results.pixel_scores import logit_scores
from avs_jax.spec import InputError
from avs_jax.tasks import make_task
from configs import avss_sam2, refer_sam2, s4_sam2

SIDE = 64
LOSS = s4_sam2.get_config("tiny").loss


def host_config(**changes):
    config = s4_sam2.get_config("tiny").model
    config.update(changes)
    return config


def clip_batch(frames=3, clips=2):
    rng = np.random.default_rng(0)
    return {
        "images": rng.integers(0, 255, (clips, frames, SIDE, SIDE, 3), dtype=np.uint8),
        "log_mel": rng.normal(size=(clips, frames, 96, 64)).astype(np.float32),
        "valid": np.ones((clips, frames), bool),
    }


def draw(model, example, seed=5):
    """Random variables, without compiling anything."""
    rng = np.random.default_rng(seed)

    def leaf(x):
        fan_in = max(1, int(np.prod(x.shape[:-1])))
        return rng.standard_normal(x.shape, np.float32) / np.float32(fan_in) ** 0.5

    shapes = jax.eval_shape(model.init, jax.random.key(0), example)
    return jax.device_put(jax.tree.map(leaf, shapes))


@functools.cache
def made(**changes):
    """(model, variables, batch -> outputs)."""
    model = build_model(host_config(**changes), SAM2Host)
    variables = draw(model, jax.tree.map(lambda x: x[:1, :1], clip_batch()))
    decoder = variables["params"]["sam2"]["mask_decoder"]
    decoder["pred_obj_score_head"]["layers_2"]["bias"] += 3.0  # something sounds
    return model, variables, jax.jit(lambda batch: model.apply(variables, batch))


def empty_prompt(variables, images):
    """Plain SAM2's answer to frames without a prompt, as in tracking."""
    plain = build_model(host_config().sam2, SAM2)

    @jax.jit
    def answer(images):
        def call(method, *args):
            return plain.apply({"params": variables["params"]["sam2"]}, *args, method=method)

        features = call("encode_images", prepare_images(images))
        return call("segment", call("without_memory", features), *no_prompt(features))

    return answer(images)


@pytest.mark.slow
def test_without_audio_tokens_it_is_plain_sam2():
    """Bit for bit the answer to the empty prompt."""
    _, variables, run = made(num_audio_tokens=0)
    batch = clip_batch()
    want, found = empty_prompt(variables, batch["images"]), run(batch)
    masks = np.asarray(found["pred_masks"])[..., 0].reshape(want.low_res_mask.shape)
    np.testing.assert_array_equal(masks, want.low_res_mask)
    assert "audio_prompts" not in variables["params"]
    score = np.asarray(found["object_score_logits"]).reshape(-1, 1)
    np.testing.assert_array_equal(score, want.object_score_logits)


@pytest.mark.slow
def test_words_in_the_maps_start_as_nothing():
    """gamma = 0: plain SAM2, bit for bit; gamma > 0 moves the masks.

    Operation by operation: XLA fuses the operations of two programs differently, which rounds
    differently.
    """
    words = refer_sam2.get_config("tiny").model
    changes = {"num_audio_tokens": 0, "text": words.text, "fusion": words.fusion}
    batch = clip_batch() | {
        "text_ids": np.array([[0, 5, 9, 2], [0, 7, 2, 1]], np.int32),
        "text_mask": np.array([[True] * 4, [True] * 3 + [False]]),
    }
    model = build_model(host_config(**changes, text_prompt=False), SAM2Host)
    variables = draw(model, jax.tree.map(lambda x: x[:1, :1], batch))
    params = variables["params"]
    params["sam2"]["mask_decoder"]["pred_obj_score_head"]["layers_2"]["bias"] += 3.0
    gammas = {name: np.zeros((), np.float32) for name in params["cma"] if "gamma" in name}
    assert set(gammas) == {"gamma_res4", "gamma_res3", "gamma_res2"}
    still = {"params": params | {"cma": params["cma"] | gammas}}
    with jax.disable_jit():
        found = model.apply(still, batch)
        want = empty_prompt(still, batch["images"])
    moved = jax.jit(model.apply)({"params": params}, batch)
    masks = np.asarray(found["pred_masks"])[..., 0].reshape(want.low_res_mask.shape)
    np.testing.assert_array_equal(masks, want.low_res_mask)
    score = np.asarray(found["object_score_logits"]).reshape(-1, 1)
    np.testing.assert_array_equal(score, want.object_score_logits)
    assert np.abs(moved["pred_masks"] - found["pred_masks"]).max() > 1e-3
    assert found["pred_logits"].shape == (2, 3, 1, 3)
    np.testing.assert_array_equal(found["presence_logits"], found["object_score_logits"])


@pytest.mark.slow
def test_the_sound_moves_the_masks_of_its_frame():
    _, _, run = made()
    batch = clip_batch()
    other = dict(batch, log_mel=batch["log_mel"].copy())
    other["log_mel"][0, 1] += 1
    one, two = run(batch), run(other)
    moved = np.abs(np.asarray(one["candidate_masks"]) - two["candidate_masks"]).max((2, 3, 4))
    assert moved[0, 1] > 1e-5
    np.testing.assert_array_equal(np.delete(moved.reshape(-1), 1), 0)


@pytest.mark.slow
def test_memory_looks_back_and_never_at_padding():
    _, _, run = made(memory=True)
    batch = clip_batch()
    reference = np.asarray(run(batch)["candidate_masks"])
    later = dict(batch, images=batch["images"].copy())
    later["images"][:, 2] = 255 - later["images"][:, 2]
    np.testing.assert_allclose(run(later)["candidate_masks"][:, :2], reference[:, :2], atol=1e-5)
    earlier = dict(batch, images=batch["images"].copy())
    earlier["images"][:, 0] = 255 - earlier["images"][:, 0]
    assert np.abs(run(earlier)["candidate_masks"][:, 2] - reference[:, 2]).max() > 1e-4
    padded = dict(batch, valid=np.array([[True, False, True]] * 2))
    hidden = dict(padded, images=batch["images"].copy())
    hidden["images"][:, 1] = 0
    one, two = run(padded)["candidate_masks"], run(hidden)["candidate_masks"]
    np.testing.assert_allclose(one[:, 2], two[:, 2], atol=1e-5)
    assert np.abs(one[:, 2] - reference[:, 2]).max() > 1e-4


def test_class_scores_are_log_probabilities():
    rng = np.random.default_rng(0)
    mask, classes = rng.normal(size=(1, 2, 2)), rng.normal(size=(1, 2, 2, 3))
    found = np.exp(class_scores(jnp.float32(mask), jnp.float32(classes)))
    inside = 1 / (1 + np.exp(-mask))[..., None]
    want = np.exp(classes) / np.exp(classes).sum(-1, keepdims=True) * inside
    np.testing.assert_allclose(found, np.concatenate([1 - inside, want], -1), rtol=1e-5)
    hidden = class_scores(jnp.full((1, 2, 2), -1024.0), jnp.float32(classes))
    assert (np.asarray(hidden).argmax(-1) == 0).all()


def test_scores_of_a_frame_where_nothing_sounds_are_background():
    """Maps at stride 4 are resized to the padded image, then cut and resized."""
    masks = np.full((1, 2, 16, 16, 1), -1024, np.float32)
    masks[0, 1, :, 8:] = 1024
    batch = {"images": np.zeros((1, 2, 48, 60, 3)), "valid": np.ones((1, 2), bool)}
    scores = np.asarray(logit_scores({"pred_masks": masks}, batch, (24, 30)))
    assert scores.shape == (1, 2, 24, 30, 2)
    assert (scores[0, 0].argmax(-1) == 0).all()
    np.testing.assert_array_equal(
        scores[0, 1].argmax(-1), np.arange(30)[None] >= 16 + np.zeros((24, 1))
    )


def loss_batch():
    """A frame with an object, a silent one, and one without ground truth."""
    masks = np.zeros((1, 3, 3, 8, 8), bool)
    masks[0, 0, 1, :4, :6], masks[0, 0, 2, 4:, 2:] = True, True
    masks[0, 0, 0] = ~masks[0, 0, 1:].any(0)
    masks[0, 1, 0] = True
    return {
        "target_masks": masks,
        "target_labels": np.array([[[0, 1, 3], [0, 0, 0], [0, 0, 0]]], np.int32),
        "target_valid": np.array([[[True, True, True], [True, False, False], [False] * 3]]),
        "supervised": np.array([[True, True, False]]),
    }


@pytest.mark.parametrize("candidates", ["best", "all"])
def test_the_loss_is_its_formula(candidates):
    rng, batch = np.random.default_rng(0), loss_batch()
    logits = rng.normal(size=(1, 3, 2, 2, 3))
    outputs = {
        "candidate_masks": jnp.float32(logits),
        "candidate_ious": jnp.float32(rng.uniform(size=(1, 3, 3))),
        "object_score_logits": jnp.float32([[0.3, -0.7, 9.0]]),
        "class_logits": jnp.float32(rng.normal(size=(1, 3, 2, 2, 3))),
    }
    config = LOSS.copy_and_resolve_references()
    config.candidates = candidates
    total, terms = prompted.compute_losses(outputs, batch, None, loss_config=config)
    target = batch["target_masks"][0, 0, 1:].any(0)
    found = []
    for i in range(3):
        up = np.asarray(jax.image.resize(logits[0, 0, ..., i], (8, 8), "bilinear"))
        p = 1 / (1 + np.exp(-up))
        right = np.where(target, p, 1 - p)
        focal = np.where(target, 0.25, 0.75) * (1 - right) ** 2 * -np.log(right)
        dice = 1 - (2 * p[target].sum() + 1) / (p.sum() + target.sum() + 1)
        found.append((20 * focal.mean() + LOSS.dice_weight * dice, focal.mean(), dice))
    _, focal, dice = min(found) if candidates == "best" else np.mean(found, axis=0)
    np.testing.assert_allclose(terms["loss_focal"], 20 * focal, rtol=1e-4)
    np.testing.assert_allclose(terms["loss_dice"], LOSS.dice_weight * dice, rtol=1e-4)
    presence = (np.log1p(np.exp(-0.3)) + np.log1p(np.exp(-0.7))) / 2
    np.testing.assert_allclose(terms["loss_presence"], presence, rtol=1e-5)
    classes = np.asarray(outputs["class_logits"])[0, 0]
    log_p = classes - np.log(np.exp(classes).sum(-1, keepdims=True))
    shares = np.stack([m.reshape(2, 4, 2, 4).mean((1, 3)) for m in batch["target_masks"][0, 0, 1:]])
    want = -(shares[0] * log_p[..., 0] + shares[1] * log_p[..., 2]).sum() / shares.sum()
    np.testing.assert_allclose(terms["loss_class"], want, rtol=1e-5)
    np.testing.assert_allclose(total, sum(terms.values()), rtol=1e-6)


def test_candidates_of_another_name_are_an_error():
    config = LOSS.copy_and_resolve_references()
    config.candidates = "worst"
    with pytest.raises(InputError, match="loss.candidates = 'worst': choose one of"):
        prompted.compute_losses({}, {}, None, loss_config=config)


def test_micro_batches_add_up():
    batch, rng = loss_batch(), np.random.default_rng(1)
    batch = {name: np.concatenate([x, x]) for name, x in batch.items()}
    batch["supervised"][1, 0] = False
    outputs = {
        "candidate_masks": jnp.float32(rng.normal(size=(2, 3, 2, 2, 3))),
        "candidate_ious": jnp.float32(rng.uniform(size=(2, 3, 3))),
        "object_score_logits": jnp.float32(rng.normal(size=(2, 3))),
    }
    norms = prompted.loss_norms(batch)
    whole, _ = prompted.compute_losses(outputs, batch, None, loss_config=LOSS)

    def part(i):
        own = ({name: x[i : i + 1] for name, x in tree.items()} for tree in (outputs, batch))
        return prompted.compute_losses(*own, None, norms, loss_config=LOSS)[0]

    np.testing.assert_allclose(part(0) + part(1), whole, rtol=1e-6)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"sam2.width": 20}, "model.sam2.width = 20: expected a multiple of 16"),
        ({"audio_heads": 3}, "model.audio_heads = 3: expected a divisor of model.sam2.width"),
        ({"sam2.backbone.name": "swin"}, "model.sam2.backbone.name = 'swin'"),
        ({"sam2.backbone.depths": (1, 1)}, "model.sam2.backbone.depths"),
    ],
)
def test_values_that_cannot_be(change, message):
    config = host_config()
    config.update_from_flattened_dict(change)
    with pytest.raises(InputError, match=message):
        build_model(config, SAM2Host)


def test_every_clip_has_the_same_number_of_expressions():
    model = build_model(refer_sam2.get_config("tiny").model, SAM2Host)
    words = {"text_ids": np.zeros((3, 4), np.int32), "text_mask": np.ones((3, 4), bool)}
    with pytest.raises(ValueError, match="3 expressions for 2 clips: expected the same number"):
        jax.eval_shape(model.init, jax.random.key(0), clip_batch() | words)


def test_memory_needs_all_frames():
    config = avss_sam2.get_config("tiny")
    assert make_task(config).outputs == ("pred_masks", "object_score_logits")
    config.data.train_frames = "supervised"
    with pytest.raises(InputError, match="frames meet in host 'sam2'"):
        make_task(config)
