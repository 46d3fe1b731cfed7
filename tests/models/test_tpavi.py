"""The whole TPAVI model: numbers of the originals in evaluation, padding, audio, devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax.convert.tpavi_names import tpavi_names
from avs_jax.models import build_model
from avs_jax.models.tpavi import TPAVI
from avs_jax.results.pixel_scores import logit_scores
from avs_jax.results.postprocess import object_probability
from avs_jax.runtime.sharding import batch_sharding
from avs_jax.spec import InputError
from tests.tpavi_golden import (
    GoldenTPAVI,
    assert_probe,
    fill,
    golden,
    inputs,
    model_config,
    random_batch,
    random_variables,
    small_config,
    state_of,
)

TOLERANCE = 1e-5  # of the largest value
STAGES = {
    "resnet50": ("layer1", "layer2", "layer3_1", "layer4_1"),
    "pvt": ("stage1", "stage2", "stage3", "stage4"),
}
CASES = [
    pytest.param("resnet50", "avss/va_vv_small"),
    pytest.param("pvt", "avss/va_vv_small", marks=pytest.mark.slow),
    pytest.param("resnet50", "s4/main", marks=pytest.mark.slow),
    pytest.param("pvt", "s4/main", marks=pytest.mark.slow),
]


def frames_first(x):
    """[B, T, h, w, C] -> [N, C, h, w]."""
    return np.moveaxis(x.reshape(-1, *x.shape[2:]), -1, 1)


def groups_first(x):
    """[B, T, h, w, C] -> [groups of 5, C, 5, h, w], the original's layout of a block."""
    return np.moveaxis(x.reshape(-1, 5, *x.shape[2:]), -1, 1)


@pytest.mark.parametrize(("backbone", "case"), CASES)
def test_every_stage_agrees_with_the_original(backbone, case):
    """In evaluation; goldens of padded frames were taken before they are set to zero."""
    arrays, cases = golden(f"model_{backbone}")
    info, stages = cases[case], tuple(cases[case]["stages"])
    config = model_config(
        backbone,
        case.split("/")[0],
        tpavi_stages=stages,
        tpavi_va=info["tpavi_va_flag"],
        tpavi_vv=info["tpavi_vv_flag"],
    )
    flag = info["vid_temporal_mask_flag"]
    batch = inputs(info, info["seed_imgs"], info["seed_audio"], flag)
    state, model = state_of(backbone, case.split("/")[0], stages), GoldenTPAVI(**config)
    assert list(state) == tpavi_names(config)
    outputs = jax.jit(model.apply)(fill(model, config, state, batch), batch)
    seen = outputs["intermediates"]
    valid = batch["valid"].reshape(-1)

    def probe(name, value, where=None):
        assert_probe(value, f"{case}/{name}", arrays, TOLERANCE, where)

    def exists(index):
        return valid[index[0]]

    def exists_in_group(index):
        return valid[index[0] * 5 + index[2]]

    for i, part in enumerate(STAGES[backbone]):
        probe(f"backbone_{part}", frames_first(seen["backbone"][f"res{i + 2}"]), exists)
        probe(f"classifier_conv{i + 1}", frames_first(seen["classifier"][i]), exists)
        probe(f"path{i + 1}", frames_first(seen["paths"][i]), exists)
        probe(f"feature_map_list{i}_returned", frames_first(seen["feature_maps"][i]))
    for i in stages:
        kinds = [kind for kind in ("vv", "va") if kind in seen["tpavi"][i]]  # order of the calls
        for number, kind in enumerate(kinds):
            call, name = seen["tpavi"][i][kind], f"tpavi_b{i + 1}"
            probe(f"{name}_W_y_call{number}", groups_first(call["W_y"]), exists_in_group)
            probe(f"{name}_{kind}_out_BCTHW", groups_first(call["out"]), exists_in_group)
        audio = np.asarray(seen["audio_features"][i]).reshape(-1, 5, 256)
        np.testing.assert_allclose(audio, arrays[f"{case}/a_fea_list{i}"], atol=1e-5)
    probe("logits", frames_first(np.asarray(outputs["pred_masks"])))


@functools.cache
def small_model(**changes):
    """(model, batch -> masks, variables) of `small_config`."""
    model = TPAVI(**small_config(**changes))
    variables = random_variables(model, random_batch(clips=1))
    apply = jax.jit(lambda batch: model.apply(variables, batch)["pred_masks"])
    return model, apply, variables


def test_a_padded_frame_changes_nothing():
    """Neither its content, nor its existence, where it makes a group longer or adds another."""
    _, run, _ = small_model(tpavi_vv=True)
    batch = random_batch(clips=1, frames=7, size=32)
    batch["valid"][0, 4:] = False
    other = jax.tree.map(np.copy, batch)
    other["images"][0, 4:], other["log_mel"][0, 4:] = 9, np.nan
    padded = run(batch)
    np.testing.assert_array_equal(padded, run(other))
    assert not np.any(padded[0, 4:])
    alone = run(jax.tree.map(lambda x: x[:, :4], batch))
    np.testing.assert_allclose(padded[:, :4], alone, atol=2e-5)
    assert np.abs(alone).max() > 0.1


def test_frames_meet_in_groups():
    _, run, _ = small_model(tpavi_vv=True)
    batch = random_batch(clips=1, frames=10, size=32)
    changed = jax.tree.map(np.copy, batch)
    changed["images"][0, 7] = 0
    before, after = run(batch), run(changed)
    np.testing.assert_array_equal(before[0, :5], after[0, :5])
    assert all(np.any(before[0, t] != after[0, t]) for t in range(5, 10))


@pytest.mark.slow
def test_exported_program_takes_any_number_of_clips_and_frames():
    model, run, variables = small_model(tpavi_vv=True)
    batch = random_batch(clips=2, frames=7, size=32)
    batch["valid"][0, 3:] = False
    scope = jax.export.SymbolicScope()
    symbols = jax.export.symbolic_shape("B, T", scope=scope)
    shapes = {
        name: jax.ShapeDtypeStruct((*symbols, *x.shape[2:]), x.dtype) for name, x in batch.items()
    }
    apply = jax.jit(lambda batch: model.apply(variables, batch)["pred_masks"])
    exported = jax.export.export(apply)(shapes)
    np.testing.assert_allclose(exported.call(batch), run(batch), atol=2e-5)


@pytest.mark.slow
def test_audio_moves_the_masks_where_pixels_attend_to_it():
    batch = random_batch(frames=2, size=32)
    swapped = batch | {"log_mel": batch["log_mel"][::-1]}
    _, run, _ = small_model()
    assert np.abs(run(batch) - run(swapped)).max() > 1e-3
    for changes in ({"tpavi_va": False, "tpavi_vv": True}, {"tpavi_stages": ()}):
        _, run, _ = small_model(**changes)
        np.testing.assert_array_equal(run(batch), run(swapped))


def test_flags_share_their_parameters():
    def shapes(**changes):
        model = TPAVI(**small_config(**changes))
        tree = jax.eval_shape(lambda: model.init(jax.random.key(0), random_batch()))
        return jax.tree.map(lambda x: x.shape, tree)

    both = shapes(tpavi_vv=True)
    assert both == shapes() == shapes(tpavi_va=False, tpavi_vv=True)


@pytest.mark.slow
def test_statistics_are_those_of_the_whole_batch_on_eight_devices():
    """Batch norms of backbone and blocks: gradients and running statistics as on one device."""
    model, _, variables = small_model(tpavi_vv=True)
    batch = random_batch(clips=8, frames=2, size=32)

    def loss(params, batch):
        outputs, updates = model.apply(
            variables | {"params": params}, batch, train=True, mutable=["batch_stats"]
        )
        return jnp.square(outputs["pred_masks"]).mean(), updates["batch_stats"]

    step = jax.jit(jax.grad(loss, has_aux=True))
    one = step(variables["params"], batch)
    mesh = jax.make_mesh((8, 1), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    spread = jax.device_put(batch, batch_sharding(mesh))
    assert len(spread["images"].addressable_shards) == 8
    many = step(variables["params"], spread)
    pairs = zip(jax.tree.leaves_with_path(one), jax.tree.leaves(many), strict=True)
    for (path, value), found in pairs:
        scale = float(jnp.abs(value).max())
        np.testing.assert_allclose(found, value, atol=2e-4 * scale + 1e-6, err_msg=str(path))


@pytest.mark.slow
def test_original_counts_padded_frames_in_training():
    batch = random_batch(clips=1, size=32)
    batch["valid"][0, 3:] = False
    other = batch | {"log_mel": batch["log_mel"].copy()}

    def statistics(padded_in_statistics, batch):
        model = TPAVI(**small_config(padded_in_statistics=padded_in_statistics))
        _, updates = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))(
            small_model()[2], batch
        )
        return updates["batch_stats"]["tpavi_b1"]["W_z_1"]["mean"]

    other["images"] = batch["images"].copy()
    other["images"][0, 3:] = 0
    longer = {k: np.concatenate([v, v[:, 3:]], axis=1) for k, v in batch.items()}
    left_out = statistics(False, batch)
    np.testing.assert_array_equal(left_out, statistics(False, other))
    np.testing.assert_allclose(left_out, statistics(False, longer), atol=1e-6)
    assert np.abs(left_out - statistics(True, batch)).max() > 1e-4


def test_scores_are_thresholded_as_the_original():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((1, 2, 32, 32, 1)).astype(np.float32)
    logits[0, 0, 0, 0] = 0.0
    inputs = {"images": np.zeros((1, 2, 30, 32, 3)), "valid": np.array([[True, False]])}
    scores = logit_scores({"pred_masks": logits}, inputs, (30, 30))
    assert scores.shape == (1, 2, 30, 30, 2) and not np.any(scores[0, 1])
    inputs = {"images": np.zeros((1, 2, 32, 32, 3)), "valid": np.ones((1, 2), bool)}
    scores = logit_scores({"pred_masks": logits}, inputs, (32, 32))
    probability = object_probability(scores)
    np.testing.assert_allclose(probability, 1 / (1 + np.exp(-logits[..., 0])), atol=1e-6)
    np.testing.assert_array_equal(scores.argmax(-1) == 1, logits[..., 0] > 0)
    many = rng.standard_normal((1, 2, 32, 32, 7)).astype(np.float32)
    np.testing.assert_array_equal(logit_scores({"pred_masks": many}, inputs, (32, 32)), many)


def test_images_of_any_size_are_padded_and_masks_cover_the_padding():
    _, run, _ = small_model()
    batch = random_batch(clips=1, frames=2, size=64)
    batch["images"] = batch["images"][:, :, :40, :50]
    masks = run(batch)
    assert masks.shape == (1, 2, 64, 64, 1) and masks.dtype == jnp.float32
    assert logit_scores({"pred_masks": masks}, batch, (24, 24)).shape == (1, 2, 24, 24, 2)


@pytest.mark.slow
def test_remat_and_bfloat16_change_little_or_nothing():
    batch = random_batch(clips=1, frames=2, size=32)
    _, run, variables = small_model()

    def gradient(**changes):
        model = TPAVI(**small_config(**changes))

        def loss(params):
            outputs, _ = model.apply(
                variables | {"params": params}, batch, train=True, mutable=["batch_stats"]
            )
            return jnp.square(outputs["pred_masks"]).mean()

        return jax.jit(jax.grad(loss))(variables["params"])

    plain, again = gradient(), gradient(remat="all")
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * float(jnp.abs(a).max()) + 1e-6)
    whole, half = run(batch), small_model(dtype="bfloat16")[1](batch)
    assert half.dtype == jnp.float32
    assert 0 < np.abs(half - whole).mean() < 0.1 * np.abs(whole).mean()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tpavi_mode": "dots"}, "model.tpavi_mode = 'dots': expected one of"),
        ({"tpavi_stages": (0, 4)}, r"model.tpavi_stages = \(0, 4\): expected some of"),
        ({"tpavi_stages": (1, 1)}, r"model.tpavi_stages = \(1, 1\)"),
        ({"tpavi_va": False}, "where tpavi_va and tpavi_vv are off"),
        ({"attention_frames": 0}, "model.attention_frames = 0"),
        ({"backbone": {"name": "vgg"}}, "model.backbone.name = 'vgg'"),
        ({"audio_backbone": {"name": "vggish", "width": 2}}, "set its `embedding`"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    with pytest.raises(InputError, match=message):
        model = build_model(small_config(**changes), TPAVI)
        jax.eval_shape(lambda: model.init(jax.random.key(0), random_batch()))
