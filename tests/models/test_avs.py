"""The assembled model: the original's encoders, parameter counts, draws, padding, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from avs_jax.models import build_model
from avs_jax.models.avs import gumbel
from avs_jax.spec import frame_ids
from configs import s4_ama, s4_vct
from tests import small
from tests.golden.compare import assert_golden
from tests.vct_golden import channels_first, golden, tiny_outputs


def small_config(fusion="ama", **changes):
    """config.model, as small as it goes."""
    config = s4_ama.get_config("demo").model
    config.update(num_queries=5, hidden_dim=32, audio_hidden_dim=16)
    config.backbone.update(embed_dim=16, num_heads=(1, 1, 2, 2), drop_path_rate=0.5)
    config.audio_backbone.width = 4
    config.pixel_decoder.update(num_layers=1, ffn_dim=32, num_heads=2)
    config.decoder.update(num_layers=3, ffn_dim=32, num_heads=2)
    config.fusion.update(name=fusion, embed_dim=32, grid=6)
    config.update(changes)
    return config


def random_batch(num_clips=2, num_frames=3, size=(32, 32), seed=0):
    rng = np.random.default_rng(seed)
    shape = (num_clips, num_frames)
    return {
        "images": rng.integers(0, 256, (*shape, *size, 3), dtype=np.uint8),
        "pre_masks": rng.integers(0, 256, (*shape, *size, 3), dtype=np.uint8),
        "log_mel": rng.standard_normal((*shape, 96, 64)).astype(np.float32),
        "motion": rng.uniform(0, 1, (*shape, *size, 1)).astype(np.float32),
        "valid": np.ones(shape, bool),
        "frame_index": np.broadcast_to(np.arange(num_frames, dtype=np.int32), shape),
    }


@pytest.fixture(scope="module")
def variables():
    """Random variables, without the time that compiling init takes."""
    tree = jax.eval_shape(build_model(small_config()).init, jax.random.key(0), random_batch())
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        center = 1.0 if path[-1].key in ("scale", "var") else 0.0
        return (center + 0.1 * rng.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, tree)


def train_outputs(model, variables, batch):
    keys = jax.random.split(jax.random.key(1), 3)
    rngs = dict(zip(("gumbel", "drop_path", "pre_mask_dropout"), keys, strict=True))

    def apply(variables, batch):
        return model.apply(variables, batch, train=True, rngs=rngs, mutable=["batch_stats"])[0]

    return jax.tree.map(np.asarray, jax.jit(apply)(variables, batch))


@pytest.mark.parametrize("name", ["s4", "ms3"])
@pytest.mark.slow
def test_encoders_agree_with_the_original(name):
    arrays, intermediates = golden(name), tiny_outputs(name)["intermediates"]
    for branch in ("backbone", "pre_sam_backbone", "fused"):
        for level, x in intermediates[branch].items():
            assert_golden(arrays, f"{branch}/{level}", channels_first(x))
    for i, gate in enumerate(intermediates["scale_factor"]):
        assert_golden(arrays, f"scale_factor/{i}", channels_first(gate))
    assert_golden(arrays, "audio_backbone/out", channels_first(intermediates["audio_backbone"]))
    assert_golden(
        arrays, "predictor/audio_features", channels_first(intermediates["audio_features"])
    )


@pytest.mark.parametrize(("recipe", "extra"), [(s4_vct, 0), (s4_ama, 215_298)])
def test_full_model_has_the_originals_trainable_parameters(recipe, extra):
    model = build_model(recipe.get_config().model)
    batch = jax.eval_shape(lambda: random_batch(1, 1, (384, 384)))
    tree = jax.eval_shape(model.init, jax.random.key(0), batch)["params"]
    sizes = {k: v.size for k, v in traverse_util.flatten_dict(tree, sep="/").items()}
    trainable = sum(n for path, n in sizes.items() if not path.startswith("audio_backbone/"))
    assert trainable == 217_708_816 + extra
    ours = [path for path in sizes if path.startswith("ama/") or path.endswith("/lambda")]
    assert sum(sizes[path] for path in ours) == extra


def test_outputs_have_the_shapes_of_the_contract(variables):
    model, batch = build_model(small_config()), random_batch(2, 3)
    out = jax.eval_shape(model.apply, variables, batch)
    assert out["pred_logits"].shape == (2, 3, 5, 3)
    assert out["pred_masks"].shape == (2, 3, 8, 8, 5)
    assert [set(aux) for aux in out["aux_outputs"]] == [{"pred_logits", "pred_masks"}] * 3
    assert out["motion_weight"].shape == (2, 3, 6, 6)
    assert out["audio_embed"].shape == (2, 3, 32)
    assert out["proto_embed"].shape == (23, 32)
    assert out["logit_scale"].shape == ()


@pytest.fixture(scope="module")
def without_fusion(variables):
    """A model of four clips that drops pre-mask branches, its variables, batch and outputs."""
    model = build_model(small_config("none", pre_mask_dropout=0.5))
    params = {"params": {k: v for k, v in variables["params"].items() if k != "ama"}}
    batch = random_batch(4, 3)
    return model, params, batch, train_outputs(model, params, batch)


@pytest.mark.slow
def test_training_on_a_subset_of_frames_draws_the_same_numbers(without_fusion):
    """Without cross-frame statistics, frames 0 and 2 are the same with or without frame 1."""
    model, params, batch, whole = without_fusion
    part = train_outputs(model, params, {k: x[:, [0, 2]] for k, x in batch.items()})
    for name in ("pred_logits", "pred_masks"):
        np.testing.assert_allclose(part[name], whole[name][:, [0, 2]], rtol=1e-4, atol=1e-5)


def test_draws_follow_the_key_and_the_frame():
    ids = frame_ids(jnp.array([[0, 4], [4, 0]]))
    assert len(set(ids.tolist())) == 4
    noise = gumbel(jax.random.key(3), ids, 2, 5)
    again = gumbel(jax.random.key(3), ids[::-1], 2, 5)
    np.testing.assert_array_equal(noise, again[::-1])
    assert len(np.unique(noise)) == noise.size


def test_pre_mask_dropout_drops_the_branch_for_whole_clips(without_fusion):
    intermediates = without_fusion[-1]["intermediates"]
    changed = (
        np.abs(intermediates["fused"]["res3"] - intermediates["backbone"]["res3"]).max((1, 2, 3))
        > 0
    )
    changed = changed.reshape(4, 3)
    assert np.all(changed == changed[:, :1])
    assert 0 < changed[:, 0].sum() < 4


@pytest.mark.slow
def test_lambda_zero_does_not_change_the_masks(variables):
    """The same parameters give the same bits with and without AMA, but not with lambda 1."""
    batch = random_batch()
    with_ama, without = (jax.jit(build_model(small_config(name)).apply) for name in ("ama", "none"))
    block = variables["params"]["predictor"]["visual_query_block"]

    def masks(apply, strength):
        predictor = variables["params"]["predictor"] | {
            "visual_query_block": block | {"lambda": jnp.full(1, strength)}
        }
        tree = dict(variables, params=variables["params"] | {"predictor": predictor})
        return np.asarray(apply(tree, batch)["pred_masks"])

    plain = masks(without, 1.0)
    np.testing.assert_array_equal(masks(with_ama, 0.0), plain)
    assert np.any(masks(with_ama, 1.0) != plain)


@pytest.mark.slow
@pytest.mark.parametrize("at", ["features", "both"])
def test_ama_on_the_features_starts_with_the_masks_of_a_checkpoint_without_it(at):
    """Without a map on the queries, lambda does not exist; with one it is 0."""
    config = small.tiny_config("none")
    size = (config.data.image_size,) * 2
    batch = {k: np.asarray(v) for k, v in small.train_batch(config).items()}
    plain = small.random_variables(config, size)
    before = jax.jit(build_model(config.model).apply)(plain, batch)["pred_masks"]
    config = small.tiny_config()
    config.data.pre_masks = False
    config.model.fusion.at = at
    config.model.decoder.lambda_init = 0.0
    batch = {k: np.asarray(v) for k, v in small.train_batch(config).items()}
    model = build_model(config.model)
    fresh = jax.jit(model.init)(jax.random.key(0), batch)
    block = plain["params"]["predictor"]["visual_query_block"]
    strength = fresh["params"]["predictor"]["visual_query_block"].get("lambda")
    assert (strength is None) == (at == "features")
    params = plain["params"] | {"ama": fresh["params"]["ama"]}
    if strength is not None:
        block = block | {"lambda": strength}
        params["predictor"] = params["predictor"] | {"visual_query_block": block}
    variables = {"params": params, "batch_stats": fresh["batch_stats"]}
    apply = jax.jit(model.apply)
    np.testing.assert_array_equal(apply(variables, batch)["pred_masks"], before)
    params["ama"]["feature_proj"]["kernel"] = jnp.ones_like(
        fresh["params"]["ama"]["feature_proj"]["kernel"]
    )
    assert np.any(apply(variables, batch)["pred_masks"] != before)


def test_images_are_padded_to_a_multiple_of_32():
    model = build_model(small_config("none", pre_masks=False))
    batch = random_batch(1, 1, (33, 20))
    shape = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), batch)[0])
    assert shape["pred_masks"].shape == (1, 1, 16, 8, 5)


def test_bfloat16_computes_and_returns_float32_predictions(variables):
    model = build_model(small_config(dtype="bfloat16"))
    out = jax.eval_shape(model.apply, variables, random_batch())
    assert out["intermediates"]["backbone"]["res2"].dtype == jnp.bfloat16
    assert out["intermediates"]["decoder"]["ffn"][0].dtype == jnp.bfloat16
    assert out["pred_masks"].dtype == out["pred_logits"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.backbone.update(name="swim"), r"backbone.name = 'swim': choose one of"),
        (lambda c: c.audio_backbone.update(name="ear"), r"audio_backbone.name = 'ear': choose one"),
        (lambda c: c.fusion.update(name="amma"), r"fusion.name = 'amma': choose one of"),
        (lambda c: c.update(num_quries=3), r"model.num_quries: no such key.*num_queries"),
        (lambda c: c.__delitem__("dtype"), r"lacks \['dtype'\]"),
    ],
)
def test_wrong_configurations_are_errors_that_name_the_choices(change, message):
    config = small_config()
    change(config)
    with pytest.raises(ValueError, match=message):
        build_model(config)


def test_an_unknown_field_of_a_part_is_an_error():
    config = small_config()
    config.backbone.window_sise = 7
    with pytest.raises(ValueError, match=r"model.backbone.window_sise: .*nearest: \['window_size'"):
        jax.eval_shape(build_model(config).init, jax.random.key(0), random_batch())


def test_the_flow_channels_of_ama_follow_the_motion():
    batch = random_batch() | {"motion": np.zeros((2, 3, 32, 32, 2), np.float32)}
    tree = jax.eval_shape(build_model(small_config()).init, jax.random.key(0), batch)
    assert tree["params"]["ama"]["flow_encoder_0"]["kernel"].shape == (3, 3, 2, 64)


def test_a_batch_with_missing_fields_is_an_error(variables):
    batch = random_batch()
    del batch["motion"]
    with pytest.raises(ValueError, match="the batch has no motion, which this model reads"):
        jax.eval_shape(build_model(small_config()).apply, variables, batch)
    with pytest.raises(ValueError, match="motion: 3 channels, expected 1"):
        batch = random_batch() | {"motion": np.zeros((2, 3, 32, 32, 3), np.float32)}
        jax.eval_shape(build_model(small_config()).apply, variables, batch)
    with pytest.raises(ValueError, match="log_mel: axis 64"):
        batch = random_batch() | {"log_mel": np.zeros((2, 3, 96, 32), np.float32)}
        jax.eval_shape(build_model(small_config()).apply, variables, batch)
