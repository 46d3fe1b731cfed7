"""Weight files of every source, in every layout: there and back, and damaged in every way."""

import functools
import json
import os
import pickle
import re

import jax
import numpy as np
import pytest
from flax import traverse_util

from avs_jax.convert.reader import read_state_dict
from avs_jax.convert.rules import apply_rules, invert_rules
from avs_jax.convert.tables import raft_rules, vct_rules
from avs_jax.programs import convert_weights, weight_conversion
from avs_jax.runtime.checkpoint import Checkpoint
from configs.s4_ama import get_config as s4_ama
from configs.s4_vct import get_config as s4_vct
from configs.s4_vct_pvt_v2 import get_config as s4_vct_pvt_v2
from configs.s4_vct_resnet50 import get_config as s4_vct_resnet50
from tests import backbone_files
from tests.convert.test_convert import OTHER
from tests.vct_state import state_dict as vct_state_dict
from tests.weight_files import (
    tensors_of,
    write_safetensors_of,
    write_torch_legacy,
    write_torch_zip,
)

CONFIGS = {
    "s4_ama": s4_ama,
    "s4_vct": s4_vct,
    "s4_vct_pvt_v2": s4_vct_pvt_v2,
    "s4_vct_resnet50": s4_vct_resnet50,
}
SWIN = {"embed_dim": 8, "depths": (1, 2, 3, 1), "num_heads": (1, 2, 2, 4), "window_size": 3}
PVT = {"embed_dims": (8, 16, 20, 24), "depths": (1, 2, 1, 1), "num_heads": (1, 2, 5, 4)}
RESNET = {"depths": (1, 2, 1, 1), "width": 4}
SECTIONS = {"swin": SWIN, "pvt_v2": PVT, "resnet50": RESNET, "vggish": {"width": 4}}
RECIPES = {
    "swin": "s4_vct",
    "pvt_v2": "s4_vct_pvt_v2",
    "resnet50": "s4_vct_resnet50",
    "vggish": "s4_vct",
}
PVT_BLOCK, SWIN_BLOCK = r"block(\d)\.(\d+)\.", r"layers\.(\d)\.blocks\.(\d+)\."
LAYOUTS = {  # layout -> source, names of the published file, where block numbers stand
    "swin_microsoft": ("swin", "swin_base_patch4_window12_384_22k_microsoft", SWIN_BLOCK),
    "swin_timm": ("swin", "timm_swin_base_patch4_window12_384", SWIN_BLOCK),
    "swin_vct": ("swin", "swin_base_vct_backbone", SWIN_BLOCK),
    "pvt_official": ("pvt_v2", "pvt_v2_b5_official", PVT_BLOCK),
    "pvt_avsbench": ("pvt_v2", "pvt_v2_b5_avsbench_encoder", PVT_BLOCK),
    "pvt_timm": ("pvt_v2", "timm_pvt_v2_b5", r"stages\.(\d)\.blocks\.(\d+)\."),
    "resnet_torchvision": ("resnet50", "torchvision_resnet50", r"layer(\d)\.(\d+)\."),
    "resnet_b2": ("resnet50", "", r"layer(\d)(?:_\d)?\.(\d+)\."),
    "vggish": ("vggish", "vggish", None),
    "vggish_pca": ("vggish", "vggish", None),
}
PARAMETERS = {"swin": 86_880_376, "pvt_v2": 81_443_008, "resnet50": 23_508_032, "vggish": 4_499_712}


def make_config(source: str, small: bool = True):
    config = CONFIGS[RECIPES[source]]()
    if small:
        config.model[weight_conversion.PARTS[source].section].update(SECTIONS[source])
    return config


def published(layout: str) -> backbone_files.Entries:
    file = LAYOUTS[layout][1]
    found = backbone_files.entries(file) if file else backbone_files.b2_entries()
    return found | backbone_files.entries("vggish_pca") if layout == "vggish_pca" else found


def rules_of(source: str, config, names):
    part = weight_conversion.PARTS[source]
    return part.rules(config.model[part.section], names)


@functools.cache
def shapes_of_part(source: str, small: bool) -> dict[str, tuple[int, ...]]:
    config = make_config(source, small)
    init = weight_conversion.make_part_init(config, weight_conversion.PARTS[source].section)
    params, stats = (traverse_util.flatten_dict(tree, sep="/") for tree in jax.eval_shape(init))
    flat = params | {f"batch_stats/{path}": leaf for path, leaf in stats.items()}
    return {path: leaf.shape for path, leaf in flat.items()}


@functools.cache
def small_state(layout: str) -> dict[str, np.ndarray]:
    """A file of this layout for the small model; what is not taken is there too, small."""
    source, _, pattern = LAYOUTS[layout]
    found, config = published(layout), make_config(source)
    if pattern:
        depths = SECTIONS[source]["depths"]
        first = 0 if pattern.startswith((r"layers", r"stages")) else 1
        found = backbone_files.without_blocks(found, pattern, (*[0] * first, *depths))
    rules = rules_of(source, config, found)
    blank = {p: np.broadcast_to(np.int8(0), s) for p, s in shapes_of_part(source, True).items()}
    rng, state = np.random.default_rng(0), {}
    for name, (_, dtype) in found.items():
        theirs = invert_rules(blank, rules, [name])
        shape = theirs[name].shape if theirs else (3,)
        state[name] = rng.standard_normal(shape).astype(np.float32)
        if dtype == "int64":
            state[name] = np.zeros(shape, np.int64)
    return state


def command(source: str, path, output, *more) -> int:
    flags = [f"--source={source}", f"--input={path}", f"--output={output}"]
    if source in RECIPES:
        section = weight_conversion.PARTS[source].section
        flags += [f"--config=configs/{RECIPES[source]}.py"]
        flags += [f"--config.model.{section}.{k}={v}" for k, v in SECTIONS[source].items()]
    if source == "vct":
        flags += [
            "--config=configs/s4_ama.py:demo",
            *(f"--config.{k}={v}" for k, v in OTHER.items()),
        ]
    return convert_weights.main(["convert_weights", *flags, *more])


def flat_variables(directory) -> dict[str, np.ndarray]:
    params, stats = Checkpoint.find(directory).variables()
    flat = traverse_util.flatten_dict(params, sep="/")
    stats = traverse_util.flatten_dict(stats, sep="/")
    return flat | {f"batch_stats/{path}": leaf for path, leaf in stats.items()}


# ---- there and back ----


@pytest.mark.parametrize("layout", LAYOUTS)
def test_published_files_match_without_remainder(layout):
    """Full size: every tensor has its place or is known, every parameter its tensor."""
    source = LAYOUTS[layout][0]
    shapes, found = shapes_of_part(source, False), published(layout)
    values = {name: np.broadcast_to(np.float16(0), shape) for name, (shape, _) in found.items()}
    fresh = weight_conversion.PARTS[source].fresh(found)
    rules = rules_of(source, make_config(source, small=False), found)
    tree = apply_rules(values, rules, shapes, fresh)
    assert bool(fresh) == (layout in ("swin_microsoft", "swin_timm"))
    missing = set(shapes) - set(tree)
    norms = {f"norm{i}/{leaf}" for i in range(4) for leaf in ("scale", "bias")}
    assert missing == (norms if fresh else set())
    sizes = {p: np.prod(s, dtype=int) for p, s in shapes.items() if "batch_stats" not in p}
    assert sum(sizes.values()) == PARAMETERS[source]


def write_npz(path, state):
    np.savez(path, **state)


def write_tensors(path, state):
    write_safetensors_of(path, state, {"format": "pt"})


def write_zip(path, state):
    tensors, storages = tensors_of({f"module.{name}": x for name, x in state.items()})
    write_torch_zip(path, {"model": tensors, "epoch": 3}, storages)


def write_legacy(path, state):
    tensors, storages = tensors_of(state)
    write_torch_legacy(path, {"state_dict": tensors}, storages)


def write_pickle(path, state):
    """As detectron2's converters do."""
    path.write_bytes(pickle.dumps({"model": state, "matching_heuristics": True}))


WRITERS = [write_npz, write_tensors, write_zip, write_legacy, write_pickle]


@functools.cache
def all_states() -> dict[str, dict[str, np.ndarray]]:
    return {layout: small_state(layout) for layout in LAYOUTS} | {
        "vct": vct_state(), "raft": raft_state(),
    }  # fmt: skip


@functools.cache
def vct_state():
    config = s4_ama("demo")
    config.update_from_flattened_dict(OTHER)
    return vct_state_dict(config, (64, 64))


@functools.cache
def raft_state():
    return backbone_files.golden_state(backbone_files.entries("raft_small"))


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_every_source_reads_the_same_from_every_format(tmp_path, write):
    """Wrapped in `model` or `state_dict`, behind `module.`, beside other entries."""
    for source, state in all_states().items():
        path = tmp_path / f"{source}.{'npz' if write is write_npz else 'bin'}"
        write(path, state)
        found = read_state_dict(path)
        assert list(found) == list(state), source
        for name, array in state.items():
            assert found[name].dtype == array.dtype, name
            np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("legacy", [False, True])
def test_every_source_reads_the_same_from_torch_itself(tmp_path, legacy):
    torch = pytest.importorskip("torch")
    kwargs = {"_use_new_zipfile_serialization": False} if legacy else {}
    for source, state in all_states().items():
        tensors = {f"module.{n}": torch.from_numpy(np.array(x)) for n, x in state.items()}
        torch.save({"model": tensors, "epoch": 3}, tmp_path / "w.pth", **kwargs)
        found = read_state_dict(tmp_path / "w.pth")
        assert list(found) == list(state), source
        for name, array in state.items():
            np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("number, layout", list(enumerate(LAYOUTS)))
def test_there_and_back_is_the_identity(tmp_path, capsys, number, layout):
    """Through the command line, each layout in another format; all that was taken comes back."""
    source, state = LAYOUTS[layout][0], small_state(layout)
    path = tmp_path / "w.npz"
    WRITERS[number % len(WRITERS)](path, state)
    assert command(source, path, tmp_path / "ours") == 0
    printed = capsys.readouterr().out
    section = weight_conversion.PARTS[source].section
    assert f"--config.init.{section}={tmp_path / 'ours'}" in printed
    tree = flat_variables(tmp_path / "ours")
    assert {p: x.shape for p, x in tree.items()} == shapes_of_part(source, True)
    assert all(x.dtype == np.float32 for x in tree.values())
    back = invert_rules(tree, rules_of(source, make_config(source), state), list(state))
    for name, array in back.items():
        np.testing.assert_array_equal(array, state[name], err_msg=name)
    ignored = set(state) - set(back)
    for word in ("head", "fc.", "attn_mask", "position_index", "embeddings", "pca", "_2."):
        left = {name for name in ignored if word in name}
        assert {n for n in state if word in n and "mlp" not in n} == left
    if layout in ("swin_microsoft", "swin_timm"):
        assert "freshly initialized" in printed and "norm3/bias" in printed
        assert (tree["norm3/scale"] == 1).all() and (tree["norm3/bias"] == 0).all()
    else:
        assert "fresh" not in printed
    stored = Checkpoint.find(tmp_path / "ours").config
    assert stored.part == section and stored[section].name == source


def test_layouts_of_one_source_give_the_same_tree(tmp_path):
    """Where names differ only: timm's and the official PVT, torchvision's and AVSBench's ResNet."""
    for one, other in (("pvt_official", "pvt_timm"), ("resnet_torchvision", "resnet_b2")):
        source, config = LAYOUTS[one][0], make_config(LAYOUTS[one][0])
        shapes = shapes_of_part(source, True)
        first = apply_rules(small_state(one), rules_of(source, config, ()), shapes)
        names = list(small_state(other))
        again = invert_rules(first, rules_of(source, config, names), names)
        again |= {n: x for n, x in small_state(other).items() if n not in again}
        second = apply_rules(again, rules_of(source, config, names), shapes)
        for path, value in first.items():
            np.testing.assert_array_equal(second[path], value, err_msg=path)


def test_a_swin_of_another_window_is_interpolated_and_it_is_said(tmp_path, capsys):
    state = small_state("swin_vct")
    np.savez(tmp_path / "w.npz", **state)
    assert command("swin", tmp_path / "w.npz", tmp_path / "a") == 0
    assert "interpolated" not in capsys.readouterr().out
    window = "--config.model.backbone.window_size=4"
    assert command("swin", tmp_path / "w.npz", tmp_path / "b", window) == 0
    said = "7 tables of relative positions interpolated (bicubic) from window 3 to 4"
    assert said in capsys.readouterr().out
    a, b = flat_variables(tmp_path / "a"), flat_variables(tmp_path / "b")
    for path, value in a.items():
        if path.endswith("bias_table"):
            assert b[path].shape[-2:] == (49, value.shape[-1])
        else:
            np.testing.assert_array_equal(b[path], value)


# ---- damaged ----

STATES = {  # source -> the file that is damaged
    "swin": "swin_microsoft",
    "pvt_v2": "pvt_official",
    "resnet50": "resnet_torchvision",
    "vggish": "vggish",
    "vct": "vct",
    "raft": "raft",
}


def rules_for(source: str, names):
    if source == "raft":
        return raft_rules()
    if source == "vct":
        config = s4_ama("demo")
        config.update_from_flattened_dict(OTHER)
        return vct_rules(config.model)
    return rules_of(source, make_config(source), names)


def places(state, rules) -> dict[str, str]:
    """Name -> path of all that is taken."""
    found = {}
    for name in state:
        rule = next(rule for rule in rules if re.fullmatch(rule.pattern, name))
        if rule.target is not None:
            found[name] = re.fullmatch(rule.pattern, name).expand(rule.target)
    return found


@pytest.mark.parametrize("source", STATES)
def test_damaged_state_dicts_are_rejected_by_tensor_name(tmp_path, capsys, source):
    """One missing, one extra, one transposed, one of whole numbers: one message names all."""
    state = dict(all_states()[STATES[source]])
    taken = places(state, rules_for(source, state))
    turned = next(n for n in taken if state[n].ndim > 1 and len({*state[n].shape[:2]}) == 2)
    *_, missing, whole = (name for name in taken if name != turned)
    state["stranger.weight"] = np.zeros(3, np.float32)
    state[turned] = np.ascontiguousarray(state[turned].swapaxes(0, 1))
    state[whole] = state[whole].astype(np.int32)
    del state[missing]
    np.savez(tmp_path / "w.npz", **state)
    assert command(source, tmp_path / "w.npz", tmp_path / "ours") == 1
    err = capsys.readouterr().err
    assert f"{tmp_path / 'w.npz'}, nothing was written: 4 problem(s)" in err
    assert "stranger.weight (3,) matches no rule" in err
    shapes = state[turned].shape, all_states()[STATES[source]][turned].shape
    assert f"{turned} -> {taken[turned]}: shape {shapes[0]}, expected {shapes[1]}" in err
    assert f"{whole} -> {taken[whole]}: int32, expected float32" in err
    lacking = rf"{taken[missing]}( \(.*\): nothing in the source|: layers \[\d\] of \d are not)"
    assert re.search(rf"{lacking}.*{re.escape(missing)}", err), err
    assert [p.name for p in tmp_path.iterdir()] == ["w.npz"]


@pytest.mark.parametrize("source", RECIPES)
def test_other_floats_become_float32_where_asked(tmp_path, capsys, source):
    state = dict(all_states()[STATES[source]])
    rules = rules_for(source, state)
    name, other, *_ = places(state, rules)
    half, double = state[name].astype(np.float16), state[other].astype(np.float64)
    np.savez(tmp_path / "w.npz", **state | {name: half, other: double})
    assert command(source, tmp_path / "w.npz", tmp_path / "ours") == 1
    printed = capsys.readouterr().err
    assert "2 problem(s)" in printed and "--cast turns other floats into float32" in printed
    for odd, kind in ((name, "float16"), (other, "float64")):
        assert f"{odd} -> {places(state, rules)[odd]}: {kind}, expected float32" in printed
    assert not (tmp_path / "ours").exists()
    assert command(source, tmp_path / "w.npz", tmp_path / "ours", "--cast") == 0
    printed = capsys.readouterr().out
    assert "1 tensors of float16 became float32" in printed
    assert "1 tensors of float64 became float32" in printed
    tree = flat_variables(tmp_path / "ours")
    assert all(leaf.dtype == np.float32 for leaf in tree.values())
    back = invert_rules(tree, rules, [name])[name]
    np.testing.assert_array_equal(back, half.astype(np.float32))


class Exploit:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("source", STATES)
def test_files_that_are_no_weights_are_refused(tmp_path, capsys, source):
    """A pickle that would run code, a truncated archive, a web page, an empty file."""
    state = dict(all_states()[STATES[source]])
    write_zip(tmp_path / "whole.pth", state)
    whole = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "whole.pth").unlink()
    for content, reason in (
        (pickle.dumps(state | {"x": Exploit(tmp_path / "ran")}), "names posix.mkdir"),
        (whole[: len(whole) // 2], "truncated or damaged"),
        (b"<!DOCTYPE html><title>Sign in</title>", "is a web page (HTML), not weights"),
        (b"", "the file is empty"),
    ):
        (tmp_path / "w.pth").write_bytes(content)
        assert command(source, tmp_path / "w.pth", tmp_path / "ours") == 1
        err = capsys.readouterr().err
        assert f"error: {tmp_path / 'w.pth'}: " in err and reason in err
        assert [p.name for p in tmp_path.iterdir()] == ["w.pth"]


def test_a_missing_statistic_or_norm_is_no_fresh_one(tmp_path, capsys):
    """ResNet's running statistics are wanted; so is each norm of a Swin that has the others."""
    for source, layout, name, message in (
        (
            "resnet50",
            "resnet_torchvision",
            "layer2.0.bn2.running_var",
            "batch_stats/layer2_0/bn2/var (8,): nothing",
        ),
        ("swin", "swin_vct", "norm2.bias", "norm2/bias (32,): nothing"),
    ):
        state = dict(small_state(layout))
        del state[name]
        np.savez(tmp_path / "w.npz", **state)
        assert command(source, tmp_path / "w.npz", tmp_path / "ours") == 1
        assert message in capsys.readouterr().err
    np.savez(tmp_path / "w.npz", **small_state("swin_timm"))
    assert command("swin", tmp_path / "w.npz", tmp_path / "ours", "--strict") == 1
    assert "norm0/scale (8,): nothing in the source fills it" in capsys.readouterr().err
    assert not (tmp_path / "ours").exists()


def test_mistakes_on_the_command_line(tmp_path, capsys):
    path = tmp_path / "w.npz"
    np.savez(path, **small_state("pvt_official"))
    for flags, message in (
        (["--source=pvt_v2", "--config=configs/s4_vct.py"], "backbone.name is 'swin'"),
        (["--source=pvt_v2"], "--source=pvt_v2 needs --config"),
        (["--source=swin", "--config=configs/s4_vct.py"], "matches no rule"),
        (["--source=pvt_v2", "--config=configs/s4_vct.py:other"], "variant 'other'"),
        (["--source=raft", "--max_size=1KiB"], "w.npz: patch_embed4.proj.weight and"),
        (["--source=raft", "--max_size=much"], "'much' is not an amount of memory"),
    ):
        more = [f"--input={path}", f"--output={tmp_path / 'ours'}"]
        assert convert_weights.main(["convert_weights", *flags, *more]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "ours").exists()


def test_faults_of_the_program_keep_their_traceback(tmp_path, monkeypatch):
    """Only what the user gave is one message."""
    path = tmp_path / "w.npz"
    np.savez(path, **small_state("vggish"))
    monkeypatch.setattr(convert_weights, "save_variables", lambda *_: json.loads("no"))
    with pytest.raises(ValueError, match="Expecting value"):
        command("vggish", path, tmp_path / "ours")
