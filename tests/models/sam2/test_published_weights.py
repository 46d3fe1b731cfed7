"""The IoUs that the published weights predict for a known image; skipped without the files.

SAM2_WEIGHTS names a folder with the authors' .pt files, under their names, and car.png of
ybelkada/segment-anything (assets/car.png). The numbers are those that transformers' conversion
script of SAM2 checks, for one point.
"""

import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from avs_jax.convert.reader import read_state_dict
from avs_jax.data.prompts import Prompt
from avs_jax.inference.sam2 import Sam2
from avs_jax.programs.weight_conversion import convert
from configs.sam2 import sam2_config, vary

POINT = (1000, 600)
IOUS = {
    ("tiny", "2.1"): (0.0316, 0.9647, 0.1029),
    ("small", "2.1"): (0.9664, 0.1494, 0.0456),
    ("base_plus", "2.1"): (0.0361, 0.9775, 0.1307),
    ("large", "2.1"): (0.9648, 0.0371, 0.1898),
    ("tiny", "2.0"): (0.0439, 0.9567, 0.1415),
    ("small", "2.0"): (0.9593, 0.1633, 0.0392),
    ("base_plus", "2.0"): (0.0423, 0.9815, 0.0897),
    ("large", "2.0"): (0.9514, 0.0535, 0.1787),
}


@pytest.mark.slow
@pytest.mark.parametrize("size, version", IOUS)
def test_predicted_ious(size, version):
    folder = pathlib.Path(os.environ.get("SAM2_WEIGHTS", "SAM2_WEIGHTS is not set"))
    weights = folder / f"{'sam2.1' if version == '2.1' else 'sam2'}_hiera_{size}.pt"
    for path in (weights, folder / "car.png"):
        if not path.is_file():
            pytest.skip(f"{path} is missing")
    config = vary(sam2_config(size), "" if version == "2.1" else "v2.0")
    variables = convert(read_state_dict(weights), "sam2", config, strict=True).variables
    image = np.asarray(Image.open(folder / "car.png").convert("RGB"))
    found = Sam2(config, variables["params"]).predict_image(image, Prompt(points=[POINT]))
    np.testing.assert_allclose(found.ious, IOUS[size, version], rtol=0, atol=1e-2)
