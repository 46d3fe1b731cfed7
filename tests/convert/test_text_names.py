"""RoBERTa's files: every tensor of the published ones has its place, and both formats convert."""

import json

import jax
import numpy as np
import pytest
from flax import traverse_util

from avs_jax.convert.rules import apply_rules
from avs_jax.convert.text_names import roberta_rules
from avs_jax.models.text.encoder import TextEncoder
from avs_jax.programs import convert_weights, weight_conversion
from avs_jax.runtime.checkpoint import Checkpoint
from configs import parts
from tests.golden.refer.weights import refer_value
from tests.weight_files import tensors_of, write_safetensors_of, write_torch_zip


@pytest.mark.parametrize("file, layers", [("distilroberta", 6), ("roberta", 12)])
@pytest.mark.parametrize("key", ["names", "masked_lm_names"])
def test_published_files_match_without_remainder(golden_dir, file, layers, key):
    meta = json.loads((golden_dir / "refer" / f"names_{file}_base.json").read_text())
    section = parts.distilroberta().to_dict() | {"num_layers": layers}
    state = {name: np.broadcast_to(np.float16(0), shape) for name, shape in meta[key]}
    described = weight_conversion.described_config(state, "roberta").model.text.to_dict()
    assert described == section
    init = weight_conversion.make_part_init(
        weight_conversion.described_config(state, "roberta"), "text"
    )
    tree = traverse_util.flatten_dict(jax.eval_shape(init)[0], sep="/")
    found = apply_rules(state, roberta_rules(), {p: x.shape for p, x in tree.items()})
    pooler = 768 * 769
    assert sum(x.size for x in found.values()) == meta["count_parameters"] - pooler


@pytest.fixture(scope="module")
def state(golden_dir=None):
    from tests.conftest import GOLDEN

    with np.load(GOLDEN / "refer" / "golden_text_roberta.npz") as file:
        meta = json.loads(file["meta/json"].tobytes())
    return {name: refer_value(name, tuple(shape)) for name, shape in meta["params"]}


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_files_convert_without_a_configuration(tmp_path, state, name, capsys):
    path, output = tmp_path / name, tmp_path / "out"
    if path.suffix == ".bin":
        tensors, storages = tensors_of({f"roberta.{n}": x for n, x in state.items()})
        write_torch_zip(path, tensors, storages)
    else:
        write_safetensors_of(path, state, {"format": "pt"})
    flags = ["--source=roberta", f"--input={path}", f"--output={output}"]
    assert convert_weights.main(["convert_weights", *flags]) == 0
    assert f"--config.init.text={output}" in capsys.readouterr().out
    checkpoint = Checkpoint.find(output)
    assert checkpoint.config.text.num_heads == 1  # 64 wide
    params, _ = checkpoint.variables()
    want = state["encoder.layer.1.intermediate.dense.weight"].T
    np.testing.assert_array_equal(params["layers_1"]["ffn_0"]["kernel"], want)
    fields = {key: value for key, value in checkpoint.config.text.items() if key != "name"}
    ids = np.arange(4, 9, dtype=np.int32)[None]
    assert TextEncoder(**fields).apply({"params": params}, ids).shape == (1, 5, 64)


def test_other_files_are_refused(tmp_path, state, capsys):
    path = tmp_path / "model.npz"
    np.savez(path, **{"classifier.weight": np.zeros((2, 2), np.float32)})
    flags = ["--source=roberta", f"--input={path}", f"--output={tmp_path / 'out'}"]
    assert convert_weights.main(["convert_weights", *flags]) == 1
    assert "not a RoBERTa" in capsys.readouterr().err
    np.savez(path, **{k: v for k, v in state.items() if "layer.0.output.dense" not in k})
    assert convert_weights.main(["convert_weights", *flags]) == 1
    assert "layers_0/ffn_1/kernel" in capsys.readouterr().err
    assert convert_weights.main(["convert_weights", *flags, "--config=configs/s4_vct.py"]) == 1
    assert "needs no --config" in capsys.readouterr().err
