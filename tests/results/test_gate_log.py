"""The log of the gates: the fork's lines, statistics, a round trip, and figures that agree."""

import json

import numpy as np
import pytest
from PIL import Image

from avs_jax.results.gate_log import GateLog, flatten_gates, gate_log_text, read_gate_log
from avs_jax.spec import InputError
from scripts import plot_gates
from tests.conftest import GOLDEN

FOLDER = GOLDEN / "ground"


def batch_of(mask, qids=None, energy=None):
    count = len(mask)
    batch = {
        "qid": qids or [str(100 + b) for b in range(count)],
        "vid": [f"clip{b}" for b in range(count)],
        "duration": [20.0] * count,
        "windows": [np.array([[2.0, 6.0]])] * count,
        "video_mask": mask,
    }
    return batch if energy is None else batch | {"energy": energy}


@pytest.mark.parametrize("kind", ["global", "clipwise_film"])
def test_lines_of_the_fork(kind):
    """Its log of the first three samples, from the gates of its model."""
    with np.load(FOLDER / "golden_gate_log.npz") as file:
        layers = [
            {name: file[f"{kind}/{i}/{name}"] for name in ("gate_mha", "gate_ffn")} for i in (0, 1)
        ]
        mask = file["video_mask"] > 0
    kind_name = kind.removesuffix("_film")
    log = GateLog(kind_name, num_samples=3)
    log.add(flatten_gates(layers), batch_of(mask))
    measured = read_gate_log(FOLDER / f"gate_logs_val_N3_{kind}.jsonl")
    assert len(log.lines) == len(measured) == 3
    for line, expected in zip(log.lines, measured, strict=True):
        assert line["qid"] == str(expected["qid"]) and line["vid"] == expected["vid"]
        assert line["gating_type"] == expected["gating_type"]
        assert line["layer_gates"] == expected["layer_gates"]
        assert line["energy"] is None and line["gt"] == {"duration": 20.0, "windows": [[2.0, 6.0]]}


def random_log(channels, positions=True, every_channel=False, num_samples=-1, seed=0):
    """(log, gates by layer float32 [7, 12 or 1, channels], mask [7, 12], energy [7, 12])."""
    rng = np.random.default_rng(seed)
    mask = np.arange(12)[None, :] < np.array([12, 5, 9, 12, 1, 7, 3])[:, None]
    energy = rng.normal(-4, 2, (7, 12)).astype(np.float32)
    shape = (7, 12 if positions else 1, channels)
    layers = [
        {
            "gate_mha": rng.uniform(0, 1, shape).astype(np.float32),
            "gate_ffn": rng.normal(0, 0.2, shape).astype(np.float32),
        }
        for _ in range(3)
    ]
    log = GateLog("test", num_samples, every_channel)
    scores = flatten_gates(layers)
    for start, stop in ((0, 4), (4, 7)):
        rows = slice(start, stop)
        batch = batch_of(mask[rows], [str(i) for i in range(start, stop)], energy[rows])
        log.add({name: gate[rows] for name, gate in scores.items()}, batch)
    log.add({name: gate[:1] for name, gate in scores.items()}, batch_of(mask[:1], [""], energy[:1]))
    return log, layers, mask, energy


def write(log, folder):
    path = folder / "gates.jsonl"
    path.write_text(gate_log_text(log.lines))
    return path


def test_statistics_over_channels(tmp_path):
    log, layers, mask, energy = random_log(channels=16)
    lines = read_gate_log(write(log, tmp_path))
    assert [line["qid"] for line in lines] == [str(i) for i in range(7)]
    for b, line in enumerate(lines):
        assert line["energy"] == energy[b][mask[b]].tolist()
        for layer, logged in zip(layers, line["layer_gates"], strict=True):
            gate = layer["gate_mha"][b][mask[b]]
            found = logged["gate_mha"]
            assert found.keys() == {"mean", "std", "min", "max"}
            np.testing.assert_array_equal(found["max"], gate.max(axis=1))
            np.testing.assert_allclose(found["std"], gate.std(axis=1), rtol=1e-6)
    everything, *_ = random_log(channels=16, every_channel=True)
    values = everything.lines[1]["layer_gates"][2]["gate_ffn"]
    np.testing.assert_array_equal(values, layers[2]["gate_ffn"][1][mask[1]])
    ours = plot_gates.layer_means(lines)
    for name, means in plot_gates.layer_means(everything.lines).items():
        np.testing.assert_allclose(ours[name], means, atol=1e-7)


def test_the_first_samples_are_logged(tmp_path):
    log, *_ = random_log(channels=1, num_samples=5)
    lines = read_gate_log(write(log, tmp_path))
    assert len(lines) == 5 and lines == json.loads(json.dumps(log.lines))


@pytest.mark.parametrize(("channels", "positions"), [(1, True), (1, False), (8, True)])
def test_figures_agree_with_the_gates(tmp_path, channels, positions):
    log, layers, mask, energy = random_log(channels, positions)
    path = write(log, tmp_path)
    assert plot_gates.main([f"--log={path}", f"--output={tmp_path}/figures", "--top=2"]) == 0
    numbers = json.loads((tmp_path / "figures/gates.json").read_text())
    for name in ("gate_mha", "gate_ffn"):
        gates = np.stack([layer[name] for layer in layers]).astype(np.float64).mean(axis=3)
        kept = mask[None] if positions else np.ones((1, 7, 1), bool)
        means = np.where(kept, gates, 0).sum(axis=2) / kept.sum(axis=2)
        np.testing.assert_allclose(numbers[name]["layer_mean"], means.mean(axis=1), atol=1e-6)
        np.testing.assert_allclose(numbers[name]["layer_std"], means.std(axis=1), atol=1e-6)
        if positions:
            x, y = energy[mask], gates.mean(axis=0)[mask]
        else:
            x, y = np.array([energy[b][mask[b]].mean() for b in range(7)]), gates.mean(axis=0)[:, 0]
        ranks = [np.argsort(np.argsort(values)) for values in (x, y)]
        rho = np.corrcoef(*ranks)[0, 1]
        assert numbers[name]["spearman_rho"] == pytest.approx(rho, abs=1e-6)
        assert numbers[name]["num_pairs"] == len(x)
    for figure in ("heatmap", "layers", "samples", "energy"):
        with Image.open(tmp_path / f"figures/{figure}.png") as image:
            assert min(image.size) > 200


def test_signs_choose_the_colors():
    qids = ["a", "b"]
    means = {"mixed": np.array([[-0.1, 0.4]]), "positive": np.array([[0.2, 0.4]])}
    figure = plot_gates.draw_heatmaps(means, qids, "global")
    mixed, positive = (axis.images[0] for axis in figure.axes if axis.images)
    assert mixed.get_clim() == (-0.4, 0.4) and positive.get_clim() == (0.2, 0.4)
    plot_gates.plt.close(figure)


def test_without_energy_there_is_no_correlation(tmp_path):
    path = FOLDER / "gate_logs_val_N3_clipwise_film.jsonl"  # the fork's own file
    assert plot_gates.main([f"--log={path}", f"--output={tmp_path}"]) == 0
    numbers = json.loads((tmp_path / "gates.json").read_text())
    assert numbers["gate_mha"]["spearman_rho"] is None and numbers["gate_mha"]["num_pairs"] == 0
    assert len(numbers["gate_mha"]["layer_mean"]) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no sample is logged"),
        ("{", "line 1: not a sample's gates"),
        ('{"qid": 1, "gating_type": "x"}', "lacks layer_gates"),
        ('{"qid": 1, "gating_type": "x", "layer_gates": []}', "expected some"),
        ('{"qid": 1, "gating_type": "x", "layer_gates": [{"g": [1, 2]}]}', r"shape \[2\]"),
        (
            '{"qid": 1, "gating_type": "x", "layer_gates": [{"g": [[1]]}]}\n'
            '{"qid": 2, "gating_type": "x", "layer_gates": [{"h": [[1]]}]}',
            "line 2: .*expected .*g",
        ),
        ('{"qid": 1, "gating_type": "x", "layer_gates": [{"g": [[NaN]]}]}', "NaN or infinite"),
        (
            '{"qid": 1, "gating_type": "x", "layer_gates": [{"g": {"mean": [[1]]}}]}',
            r"shape \[1, 1\], expected \[positions\]",
        ),
        (
            '{"qid": 1, "gating_type": "x", "layer_gates": [{"g": [[1]]}, {"g": [[1], [2]]}]}',
            "g has 1 positions, 2 in another layer",
        ),
        (
            '{"qid": 1, "gating_type": "x", "layer_gates": [{"g": [[1], [2]]}], "energy": [0]}',
            "g has 2 positions for 1 energies",
        ),
        (
            '{"qid": 1, "gating_type": "x", "layer_gates": [{"g": [[1]]}], "energy": [null]}',
            "energy: expected a list of finite numbers",
        ),
    ],
)
def test_files_that_are_no_log(tmp_path, capsys, content, message):
    path = tmp_path / "log.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_gate_log(path)
    assert plot_gates.main([f"--log={path}", f"--output={tmp_path}"]) == 1
    assert "plot_gates: " in capsys.readouterr().err
