"""The baselines from published names to predictions, through both command lines."""

import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax import predict
from avs_jax.models import build_model
from avs_jax.models.tpavi import TPAVI
from avs_jax.programs import convert_weights
from avs_jax.runtime.checkpoint import save_variables
from avs_jax.tasks import segment
from configs import s4_tpavi_resnet50
from tests.tpavi_golden import (
    GoldenTPAVI,
    assert_probe,
    golden,
    inputs,
    random_batch,
    random_variables,
    state_of,
)

RECIPES = {
    ("resnet50", "s4"): "configs/s4_tpavi_resnet50.py",
    ("pvt", "s4"): "configs/s4_tpavi_pvt_v2.py",
    ("resnet50", "avss"): "configs/avss_tpavi_resnet50.py",
    ("pvt", "avss"): "configs/avss_tpavi_pvt_v2.py",
}
TOLERANCE = 1e-5  # of the largest value


def convert(folder, recipe, state, *more):
    np.savez(folder / "model.npz", **state)
    flags = ["--source=tpavi", f"--input={folder}/model.npz", f"--output={folder}/ours"]
    assert convert_weights.main(["convert_weights", *flags, f"--config={recipe}", *more]) == 0


def predict_arrays(folder, arrays):
    np.savez(folder / "in.npz", **arrays)
    flags = [f"--checkpoint={folder}/ours", f"--arrays={folder}/in.npz"]
    assert predict.main(["predict", *flags, f"--output={folder}/out.npz"]) == 0
    return dict(np.load(folder / "out.npz"))


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["resnet50", "pvt"])
@pytest.mark.parametrize("name", ["s4/main", "avss/va_vv_small"])
def test_golden_through_both_command_lines(backbone, name, tmp_path, monkeypatch):
    """The goldens' normalized images and embeddings take the place of the arrays' frames."""
    arrays, cases = golden(f"model_{backbone}")
    info, setting = cases[name], name.split("/")[0]
    given = inputs(info, info["seed_imgs"], info["seed_audio"], info["vid_temporal_mask_flag"])

    class Fed(GoldenTPAVI):
        """Reads the clip that the first pixel of the first frame numbers."""

        def __call__(self, batch, *args, **kwargs):
            clip = jnp.asarray(batch["images"])[:, 0, 0, 0, 0].astype(jnp.int32)
            fed = {field: jnp.asarray(given[field])[clip] for field in ("images", "embedding")}
            return super().__call__({**batch, **fed}, *args, **kwargs)

        def _encode_audio(self, batch):
            TPAVI._encode_audio(self, batch)  # for its parameters, which the checkpoint has
            return super()._encode_audio(batch)

    stages = tuple(info["stages"])
    flags = {
        "tpavi_stages": stages,
        "tpavi_va": info["tpavi_va_flag"],
        "tpavi_vv": info["tpavi_vv_flag"],
    }
    overrides = [f"--config.model.{key}={value}" for key, value in flags.items()]
    small = ("width=2", "embedding=(16, 128)")
    overrides += [f"--config.model.audio_backbone.{key}" for key in small]
    convert(tmp_path, RECIPES[backbone, setting], state_of(backbone, setting, stages), *overrides)

    row = segment.HOSTS["tpavi"]._replace(module=Fed)
    monkeypatch.setitem(segment.HOSTS, "tpavi", row)
    images = np.zeros(given["images"].shape, np.uint8)
    images += np.arange(len(images), dtype=np.uint8)[:, None, None, None, None]
    fields = {field: given[field] for field in ("log_mel", "valid")}
    out = predict_arrays(tmp_path, {"images": images, **fields})

    (clips, frames), size = given["valid"].shape, info["size"]
    maps, classes = (71, 71) if setting == "avss" else (1, 2)
    assert out["pred_masks"].shape == (clips, frames, size, size, maps)
    assert out["sem_seg"].shape == (clips, frames, 224, 224, classes)
    logits = np.moveaxis(out["pred_masks"].reshape(-1, size, size, maps), -1, 1)
    assert_probe(logits, f"{name}/logits", arrays, TOLERANCE)


@pytest.mark.slow
def test_names_and_shapes_of_predicted_arrays(tmp_path):
    config = s4_tpavi_resnet50.get_config("tiny")
    variables = random_variables(build_model(config.model, TPAVI), random_batch(clips=1))
    save_variables(tmp_path / "ours", variables, config)
    batch = random_batch()
    batch["valid"][0, 3:] = False
    out = predict_arrays(tmp_path, batch)
    assert out.keys() == {"pred_masks", "sem_seg"}
    assert out["pred_masks"].shape == (2, 5, 64, 64, 1)
    assert out["sem_seg"].shape == (2, 5, 32, 32, 2)
    assert not out["sem_seg"][0, 3:].any() and out["sem_seg"][1].any((1, 2, 3)).all()
