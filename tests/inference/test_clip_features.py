"""Features of clips with trained backbones, of a whole model and of converted components."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from avs_jax.data.tokens import BOS, EOS, vocabulary_text
from avs_jax.inference.clip_features import ClipFeatures, load_component
from avs_jax.models.backbones.swin import Swin
from avs_jax.models.backbones.vggish import VGGish
from avs_jax.models.text.encoder import TextEncoder
from avs_jax.runtime.checkpoint import save_variables
from avs_jax.spec import InputError
from configs import ground_generated, qvh_qd_detr, s4_ama
from tests.video_files import steady, write


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """(a whole model with random backbones, its image backbone alone, parameters)."""
    folder, config = tmp_path_factory.mktemp("weights"), s4_ama.get_config("tiny")
    swin = config.model.backbone.to_dict()
    swin.pop("name")
    rng = np.random.default_rng(0)

    def draw(module, *shape):
        tree = jax.eval_shape(module.init, jax.random.key(0), np.zeros(shape, np.float32))
        return jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(x.dtype), tree["params"])

    params = {
        "backbone": draw(Swin(**swin), 1, 32, 32, 3),
        "audio_backbone": draw(VGGish(width=2), 1, 96, 64),
    }
    save_variables(folder / "run", {"params": params}, config)
    part = ConfigDict({"part": "backbone", "backbone": config.model.backbone})
    save_variables(folder / "part", {"params": params["backbone"]}, part)
    return folder / "run", folder / "part", params


def make_config(**features):
    config = ground_generated.get_config("tiny")
    config.data.features.update(features)
    return config


def test_backbones_of_a_model_and_converted_ones(weights, tmp_path):
    run, part, params = weights
    path = write(tmp_path / "a.mp4", steady(3))
    config = make_config(frames="backbone", frame_weights=str(part), image_size=32)
    config.data.features.update(sound="vggish", sound_weights=str(run))
    config.data.update(video_dims=(64,), audio_dim=64)
    found = ClipFeatures(config).video(path)
    assert found.frames.shape == (2, 64) and found.sound.shape == (2, 4 * 16)
    assert found.energy.shape == (2,) and found.peaks.shape == (60,)
    assert np.ptp(found.frames, axis=1).min() > 0 and np.ptp(found.sound, axis=1).min() > 0
    for source in (run, part):
        _, section, variables, _ = load_component("backbone", str(source))
        assert section["name"] == "swin"
        jax.tree.map(np.testing.assert_array_equal, variables["params"], params["backbone"])
    config.data.features.sound_weights = str(part)
    with pytest.raises(InputError, match="sound_weights: .* holds no audio_backbone"):
        ClipFeatures(config)


def test_features_need_no_weights(tmp_path):
    path = write(tmp_path / "a.mp4", steady(4), rate=16_000, channels=1)
    found = ClipFeatures(make_config()).video(path)
    assert found.frames.shape == (2, 80) and found.sound.shape == (2, 128)
    assert found.energy[1] > found.energy[0]  # the tone is louder every second


@pytest.mark.parametrize(
    ("features", "data", "message"),
    [
        ({"frames": "clip"}, {}, "features.frames = 'clip': choose one of"),
        ({"frames": "backbone"}, {}, "features.frame_weights is empty"),
        ({}, {"clip_seconds": 0.5}, "clip_seconds = 0.5: not whole seconds"),
        ({}, {"video_dims": (7,)}, r"gives video_dims = \(80,\) .* config.data has \(7,\)"),
        ({"sound": ""}, {}, "audio_dim = 0, but config.data has .* 128"),
        ({}, {"max_clips": 1}, "4 s are 2 clips of 2 s, more than config.data.max_clips = 1"),
    ],
)
def test_mistakes_are_named(tmp_path, features, data, message):
    path = write(tmp_path / "a.mp4", steady(4), rate=16_000, channels=1)
    config = make_config(**features)
    config.data.update(data)
    with pytest.raises(InputError, match=message):
        ClipFeatures(config).video(path)


def test_other_recipes_have_no_features_of_their_own():
    with pytest.raises(InputError, match="qvh_qd_detr has no config.data.features"):
        ClipFeatures(qvh_qd_detr.get_config())


def test_tokens_of_a_text_encoder(tmp_path):
    section = {"name": "tiny", "vocab_size": 16, "hidden_dim": 8, "num_layers": 1, "num_heads": 2}
    encoder = TextEncoder(**{key: value for key, value in section.items() if key != "name"})
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), np.zeros((1, 4), np.int32))["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype(np.float32), shapes)
    config = ConfigDict({"part": "text", "text": section})
    save_variables(tmp_path / "text", {"params": params}, config)
    (tmp_path / "words.json").write_text(vocabulary_text(["the", "violin"]))
    config = make_config(text="encoder", text_weights=f"{tmp_path}/text")
    config.data.features.tokenizer = f"{tmp_path}/words.json"
    config.data.update(text_dim=8, max_words=6)
    features = ClipFeatures(config)
    found = features.words("the violin")
    ids = np.array([[BOS, 4, 5, EOS]], np.int32)
    expected = encoder.apply({"params": params}, ids)[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert features.words("the violin " * 9).shape == (config.data.max_words, 8)
    with pytest.raises(InputError, match="has no word"):
        features.words(" ")
    config.data.text_dim = 9
    with pytest.raises(InputError, match="gives text_dim = 8, but config.data.text_dim = 9"):
        ClipFeatures(config).words("the violin")
