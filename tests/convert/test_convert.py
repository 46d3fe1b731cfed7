"""From a VCT weight file to a checkpoint to predictions, through the two command lines."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax import predict
from avs_jax.convert.rules import ConversionError, apply_rules
from avs_jax.convert.tables import vct_rules
from avs_jax.models import build_model
from avs_jax.programs import convert_weights, weight_conversion
from avs_jax.results.postprocess import sem_seg
from avs_jax.runtime.checkpoint import Checkpoint, save_variables
from configs import avss_vct, ms3_vct, s4_ama_brm, s4_vct
from configs.s4_ama import get_config
from configs.segment import segment_config
from tests.golden.compare import assert_golden, shapes_of
from tests.programs.test_predict import make_predictor
from tests.vct_state import entries, flat, state_dict

TINY = {  # of the golden files
    "model.backbone.embed_dim": 32,
    "model.backbone.depths": (2, 2, 2, 2),
    "model.backbone.num_heads": (2, 4, 8, 16),
    "model.backbone.window_size": 6,
}
OTHER = {  # shares no size with the golden files
    "model.backbone.embed_dim": 16,
    "model.backbone.depths": (1, 2, 3, 1),
    "model.backbone.num_heads": (1, 2, 2, 4),
    "model.backbone.window_size": 5,
    "model.num_queries": 7,
    "model.hidden_dim": 64,
    "model.audio_backbone.width": 8,
    "model.audio_hidden_dim": 24,
    "model.pixel_decoder.num_layers": 1,
    "model.pixel_decoder.ffn_dim": 40,
    "model.pixel_decoder.num_heads": 4,
    "model.decoder.num_layers": 6,
    "model.decoder.ffn_dim": 72,
    "model.decoder.num_heads": 2,
    "model.fusion.embed_dim": 32,
    "model.fusion.num_heads": 2,
    "model.fusion.grid": 10,
    "data.num_prototypes": 5,
    "data.image_size": 64,
    "evaluate.score_size": 40,
}


def overrides(values) -> list[str]:
    return [f"--config.{key}={value}" for key, value in values.items()]


def with_values(config, values):
    config.update_from_flattened_dict(values)
    return config


def convert(path, output, config, values, *more) -> int:
    flags = ["--source=vct", f"--input={path}", f"--output={output}", f"--config={config}"]
    return convert_weights.main(["convert_weights", *flags, *overrides(values), *more])


def predict_arrays(checkpoint, arrays, folder, config, values) -> dict[str, np.ndarray]:
    np.savez(folder / "in.npz", **arrays)
    flags = [f"--checkpoint={checkpoint}", f"--arrays={folder}/in.npz"]
    flags += [f"--output={folder}/out.npz", f"--config={config}", *overrides(values)]
    assert predict.main(["predict", *flags]) == 0
    with np.load(folder / "out.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def small_state():
    return state_dict(with_values(get_config("demo"), OTHER), (64, 64))


@pytest.fixture
def small(small_state):
    """A small configuration with AMA, and a state dict for it (which has no AMA)."""
    return with_values(get_config("demo"), OTHER), dict(small_state)


@pytest.mark.parametrize("dataset, num_prototypes, num_classes", [
    ("s4", 23, 2), ("ms3", 0, 2), ("ss", 71, 71),
])  # fmt: skip
def test_official_checkpoints_match_without_remainder(dataset, num_prototypes, num_classes):
    config = segment_config()
    config.data.num_prototypes, config.data.num_classes = num_prototypes, num_classes
    shapes = shapes_of(jax.eval_shape(weight_conversion.make_init(config, (384, 384)))[0])
    source = {n: np.broadcast_to(np.int8(0), shape) for n, shape in entries(dataset).items()}
    tree = apply_rules(source, vct_rules(config.model), shapes)
    assert set(tree) == set(shapes)
    official = {"s4": 289_850_000, "ms3": 289_449_359, "ss": 289_880_021}
    not_run = sum(x.size for n, x in source.items() if n.startswith("audio_backbone.embeddings"))
    assert sum(x.size for x in tree.values()) == official[dataset] - not_run


def test_names_renamed_by_a_load_without_metadata_are_not_guessed_at(small):
    config, state = small
    shapes = shapes_of(jax.eval_shape(weight_conversion.make_init(config, (64, 64)))[0])
    renamed = {
        k.replace("sem_seg_head.pixel_decoder.", "sem_seg_head."): v for k, v in state.items()
    }
    with pytest.raises(ConversionError, match="sem_seg_head.adapter_1.weight .* matches no rule"):
        apply_rules(renamed, vct_rules(config.model), shapes)


@pytest.fixture
def full_optimization():
    """Compile as users do, not as conftest.py does for speed."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


GOLDENS = {  # recipe, its module, (height, width) of the stored images
    "s4": ("configs/s4_vct.py", s4_vct, (96, 128)),
    "ms3": ("configs/ms3_vct.py", ms3_vct, (96, 96)),
    "ss": ("configs/avss_vct.py", avss_vct, (128, 96)),
}
MASK_BIAS = "sem_seg_head.predictor.mask_embed.layers.2.bias"


def golden_clips(archive) -> dict[str, np.ndarray]:
    """The stored inputs as --arrays, clips of 5 frames padded where the other one has 10."""
    length = max(len(archive[f"in/images_{b}"]) for b in range(2))

    def stack(field):
        clips = [np.moveaxis(archive[f"in/{field}_{b}"], 1, -1) for b in range(2)]
        # What stands in frames that do not exist must not matter.
        return np.stack([np.concatenate([c, c[: length - len(c)] // 2]) for c in clips])

    valid = [np.arange(length) < len(archive[f"in/images_{b}"]) for b in range(2)]
    arrays = {name: stack(name) for name in ("images", "pre_masks")}
    return arrays | {"log_mel": stack("audio_log_mel")[..., 0], "valid": np.stack(valid)}


@pytest.mark.usefixtures("full_optimization")
@pytest.mark.parametrize("name, variant", [
    ("s4", ""),
    pytest.param("ss", "", marks=pytest.mark.slow),
    pytest.param("ms3", "", marks=pytest.mark.slow),
    pytest.param("ms3", "allmasked/", marks=pytest.mark.slow),
])  # fmt: skip
def test_golden_through_both_command_lines(tmp_path, golden_dir, name, variant):
    recipe, module, (height, width) = GOLDENS[name]
    values = TINY | {"model.dtype": "float32"}
    with np.load(golden_dir / f"golden_tiny_{name}.npz") as file:
        archive = dict(file)
    state = state_dict(with_values(module.get_config(), values), (height, width))
    if variant:  # a mask bias that masks whole rows of the decoder's attention
        state[MASK_BIAS] = archive[f"{variant}override/{MASK_BIAS}"]
    np.savez(tmp_path / "vct.npz", **state)
    assert convert(tmp_path / "vct.npz", tmp_path / "ours", recipe, values) == 0
    arrays = golden_clips(archive)
    out = predict_arrays(tmp_path / "ours", arrays, tmp_path, recipe, values)
    real = arrays["valid"]
    assert out["pred_masks"].shape == (*real.shape, height // 4, width // 4, 100)
    assert not out["sem_seg"][~real].any()
    check_predictions(archive, variant, {field: value[real] for field, value in out.items()})


def check_predictions(archive, variant, out):
    """Logits, masks and scores of frames [N, ...] against the stored ones."""
    masks, scores = (np.moveaxis(out[field], -1, 1) for field in ("pred_masks", "sem_seg"))
    found = {"pred/9/logits": out["pred_logits"], "pred/9/masks": masks, "out/sem_seg": scores}
    stored = {k.removeprefix(variant): x for k, x in archive.items() if k.startswith(variant)}
    stored["meta/noise_json"] = archive["meta/noise_json"]
    logit_error = np.abs(found["pred/9/logits"] - stored["pred/9/logits"]).max((1, 2))
    score_error = np.abs(scores[:, :, ::8, ::8] - stored["out/sem_seg_every8"]).max((1, 2, 3))
    assert (logit_error < 0.05).all() and (score_error < 0.05).all()
    # Some mask logits of the decoder's predictions are within the noise of their sums: where one
    # flips, the one frame it is in moves, and only this one.
    margin = min(stored[f"pred/{i}/attn_logit_absmin"] for i in range(9))
    moved = logit_error > 1e-5 * np.abs(stored["pred/9/logits"]).max()
    assert moved.sum() <= (1 if margin < 5e-5 else 0) and (score_error[~moved] < 5e-4).all()
    if not moved.any():
        for name, value in found.items():
            if name in stored or f"{name}/sample" in stored:
                assert_golden(stored, name, value)
    if "out/sem_seg_argmax" in stored:
        labels = scores[:, :, ::2, ::2].argmax(1)
        assert (labels == stored["out/sem_seg_argmax"]).mean() > 0.9999


@pytest.mark.slow
def test_clips_of_five_and_ten_frames_in_one_batch(tmp_path):
    """Each clip of a padded batch, forwarded together or by --arrays, equals its run alone."""
    recipe = "configs/s4_ama_brm.py:demo"
    config = with_values(s4_ama_brm.get_config("demo"), OTHER)
    shapes = jax.eval_shape(weight_conversion.make_init(config, (64, 64)))
    rng = np.random.default_rng(4)
    params, stats = (
        jax.tree_util.tree_map_with_path(
            lambda path, x: (
                np.float32(path[-1].key in ("scale", "var"))
                + 0.1 * rng.standard_normal(x.shape, np.float32)
            ),
            tree,
        )
        for tree in shapes
    )
    save_variables(tmp_path / "ours", {"params": params, "batch_stats": stats}, config)
    batch = {
        "images": rng.integers(0, 256, (2, 10, 64, 64, 3), np.uint8),
        "pre_masks": rng.integers(0, 256, (2, 10, 64, 64, 3), np.uint8),
        "log_mel": rng.standard_normal((2, 10, 96, 64), np.float32),
        "motion": rng.random((2, 10, 64, 64), np.float32),
        "valid": np.arange(10)[None] < np.array([[5], [10]]),
    }
    short, long = ({k: x[b : b + 1, :n] for k, x in batch.items()} for b, n in ((0, 5), (1, 10)))
    alone = [
        predict_arrays(tmp_path / "ours", clip, tmp_path, recipe, OTHER) for clip in (short, long)
    ]
    listed = predict_arrays(tmp_path / "ours", batch, tmp_path, recipe, OTHER)
    predictor = make_predictor(config, tmp_path / "ours")
    inputs = batch | {"motion": batch["motion"][..., None]}
    together = jax.jit(predictor.task.derive)(predictor.outputs(inputs), inputs)
    for field in ("pred_logits", "pred_masks", "motion_weight", "sem_seg"):
        for b, (clip, length) in enumerate(zip(alone, (5, 10), strict=True)):
            scale = np.abs(clip[field]).max()
            for other in (listed, together):
                np.testing.assert_allclose(
                    np.asarray(other[field])[b, :length], clip[field][0], atol=2e-5 * scale
                )
    assert np.any(listed["sem_seg"][0, :5]) and not np.any(listed["sem_seg"][0, 5:])


@pytest.mark.slow
def test_another_configuration_through_both_command_lines(tmp_path, small, capsys):
    config, state = small
    np.savez(tmp_path / "vct.npz", **state)
    name = "configs/s4_ama.py:demo"
    assert convert(tmp_path / "vct.npz", tmp_path / "ours", name, OTHER) == 0
    printed = capsys.readouterr().out
    assert "ama/temperature" in printed and "batch_stats/" not in printed
    assert "relative_position_index (" in printed and "note:" not in printed

    params, batch_stats = Checkpoint.find(tmp_path / "ours").variables()
    kernel = params["backbone"]["layers_2"]["last"]["mlp"]["fc1"]["kernel"]
    np.testing.assert_array_equal(kernel, state["backbone.layers.2.blocks.2.mlp.fc1.weight"].T)
    rng = np.random.default_rng(0)
    arrays = {
        "images": rng.integers(0, 256, (2, 3, 64, 64, 3), np.uint8),
        "pre_masks": rng.integers(0, 256, (2, 3, 64, 64, 3), np.uint8),
        "log_mel": rng.standard_normal((2, 3, 96, 64), np.float32),
        "motion": rng.random((2, 3, 64, 64), np.float32),
        "valid": np.array([[True, True, True], [True, True, False]]),
    }
    out = predict_arrays(tmp_path / "ours", arrays, tmp_path, name, OTHER)
    batch = arrays | {"motion": arrays["motion"][..., None]}
    variables = {"params": params, "batch_stats": batch_stats}
    apply = jax.jit(build_model(config.model).apply, static_argnames="train")
    direct = apply(variables, batch, train=False)
    for field in ("pred_logits", "pred_masks", "motion_weight"):
        scale = float(jnp.abs(direct[field]).max())
        np.testing.assert_allclose(out[field], direct[field], rtol=0, atol=2e-5 * scale)
    assert out["motion_weight"].shape == (2, 3, 10, 10)
    scores = sem_seg(
        direct["pred_logits"].reshape(6, 7, 3), direct["pred_masks"].reshape(6, 16, 16, 7),
        (64, 64), (64, 64), 40, arrays["valid"].reshape(-1),
    )  # fmt: skip
    np.testing.assert_allclose(out["sem_seg"].reshape(6, 40, 40, 2), scores, atol=2e-4)
    assert out["sem_seg"][0].any() and not out["sem_seg"][1, 2].any()


@pytest.mark.slow
def test_fresh_parts_follow_the_seed(small):
    config, state = small
    first = weight_conversion.convert(state, "vct", config)
    again = weight_conversion.convert(state, "vct", config)
    config.seed += 1
    other = weight_conversion.convert(state, "vct", config)
    assert first.fresh == again.fresh and "ama/q_proj/kernel" in first.fresh
    assert "predictor/visual_query_block/lambda" in first.fresh
    q, same, changed = (x.variables["params"]["ama"]["q_proj"]["kernel"] for x in
                        (first, again, other))  # fmt: skip
    assert np.array_equal(q, same) and not np.array_equal(q, changed) and np.abs(q).max() > 0
    stats = flat(first.variables["batch_stats"])
    assert stats and all(np.all(x == ("var" in path)) for path, x in stats.items())


@pytest.mark.parametrize("damage, message", [
    (lambda s: s.update({"stranger.weight": np.zeros(3)}), "stranger.weight (3,) matches no rule"),
    (lambda s: s.pop("backbone.norm2.bias"), "backbone/norm2/bias (64,): nothing in the source"),
    (lambda s: s.update({"backbone.norm2.bias": np.zeros(9)}), "shape (9,), expected (64,)"),
    (lambda s: s.pop("backbone.layers.2.blocks.1.norm1.bias"), "pairs/block_1/norm1/bias"),
])  # fmt: skip
def test_disagreements_leave_nothing_behind(tmp_path, small, capsys, damage, message):
    _, state = small
    damage(state)
    np.savez(tmp_path / "vct.npz", **state)
    assert convert(tmp_path / "vct.npz", tmp_path / "ours", "configs/s4_ama.py:demo", OTHER) == 1
    assert message in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["vct.npz"]


def test_strict_refuses_to_initialize(tmp_path, small, capsys):
    np.savez(tmp_path / "vct.npz", **small[1])
    args = (tmp_path / "vct.npz", tmp_path / "ours", "configs/s4_ama.py:demo", OTHER, "--strict")
    assert convert(*args) == 1
    assert "ama/temperature (1,): nothing in the source fills it" in capsys.readouterr().err
    assert not (tmp_path / "ours").exists()


def test_mistakes_on_the_command_line(tmp_path, capsys):
    (tmp_path / "page.pth").write_text("<html>Sign in</html>")
    (tmp_path / "there").mkdir()
    for path, output, more, message in (
        ("page.pth", "new", (), "web page"),
        ("none.pth", "new", (), "No such file"),
        ("page.pth", "there", (), "exists"),
        ("page.pth", "new", ("--source=combo",), "vct"),
    ):
        assert convert(tmp_path / path, tmp_path / output, "configs/s4_vct.py", {}, *more) == 1
        err = capsys.readouterr().err
        assert message in err and "Traceback" not in err
    assert not (tmp_path / "new").exists()


def test_the_mixer_of_the_file_decides_the_image_size(small):
    config, state = small
    assert weight_conversion.image_size(state, config) == (64, 64)
    wide = np.zeros((64, 24 * 32), np.float32)
    assert weight_conversion.image_size({weight_conversion.MIXER: wide}, config) == (96, 128)
    assert weight_conversion.image_size({}, config) == (64, 64)
    odd = {weight_conversion.MIXER: np.zeros((64, 577), np.float32)}
    assert weight_conversion.image_size(odd, config) == (64, 64)


def test_the_checkpoint_keeps_the_configuration(tmp_path, small):
    config, state = small
    np.savez(tmp_path / "vct.npz", **state)
    assert convert(tmp_path / "vct.npz", tmp_path / "ours", "configs/s4_ama.py:demo", OTHER) == 0
    stored = Checkpoint.find(tmp_path / "ours").config
    assert json.loads(json.dumps(stored.model.to_dict())) == json.loads(
        json.dumps(config.model.to_dict())
    )
