"""Training from pretrained weights: what is taken, where it goes, what is refused."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from ml_collections import ConfigDict

from avs_jax import train as program
from avs_jax.convert.rules import invert_rules
from avs_jax.convert.tables import resnet_rules, vggish_rules
from avs_jax.main import main
from avs_jax.programs import convert_weights
from avs_jax.programs.weight_conversion import make_init
from avs_jax.runtime import checkpoint
from avs_jax.runtime.memory import StepBytes
from avs_jax.runtime.pretrained import (
    check_sources,
    frozen_at_random,
    init_from_checkpoint,
    load_parts,
)
from configs.segment import segment_config
from tests import small
from tests.runtime.test_checkpoint import assert_same, make_state

rng = np.random.default_rng(0)


def flat(tree):
    return traverse_util.flatten_dict(tree, sep="/")


def shaped(tree, value=None):
    """Arrays shaped as a tree of ShapeDtypeStructs: zeros on the device, or random in memory."""
    if value is None:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), tree)


@pytest.fixture(scope="module")
def model():
    """(config, shapes of params, shapes of batch_stats) of a small model with two ResNets."""
    config = small.small_config("none")
    section = {"name": "resnet50", "depths": (1, 1, 1, 1), "width": 2}
    config.model.backbone = ConfigDict(section)
    params, stats = jax.eval_shape(make_init(config, (64, 64)))
    return config, params, stats


def save(folder, model, part, section=None, change=None):
    """A folder as convert_weights leaves it, and its variables, flat."""
    config, params, stats = model
    section = section or part
    variables = {
        "params": shaped(params[part], "random"),
        "batch_stats": shaped(stats.get(part, {}), "random"),
    }
    if change:
        change(variables)
    described = config.model[section].to_dict()
    beside = ConfigDict({"part": section, section: described})
    checkpoint.save_variables(folder, variables, beside)
    return flat(variables)


def with_init(config, **init):
    config = config.copy_and_resolve_references()
    config.init.update({name: str(value) for name, value in init.items()})
    return config


def test_one_backbone_fills_both_and_audio_its_own(tmp_path, model):
    config, params, stats = model
    image = save(tmp_path / "image", model, "backbone")
    sound = save(tmp_path / "sound", model, "audio_backbone")
    config = with_init(config, backbone=tmp_path / "image", audio_backbone=tmp_path / "sound")
    before, before_stats = shaped(params), shaped(stats)
    after, after_stats, lines = load_parts(before, before_stats, config)
    for part, source in (
        ("backbone", image), ("pre_sam_backbone", image), ("audio_backbone", sound),
    ):  # fmt: skip
        for path, value in flat({"params": after, "batch_stats": after_stats}).items():
            kind, _, rest = path.partition("/")
            if rest.startswith(f"{part}/"):
                expected = source[f"{kind}/{rest.removeprefix(f'{part}/')}"]
                np.testing.assert_array_equal(value, expected, err_msg=path)
                assert isinstance(value, jax.Array)
    taken = ("backbone/", "pre_sam_backbone/", "audio_backbone/")
    old, new = flat(before), flat(after)
    assert old.keys() == new.keys()
    assert all(new[path] is old[path] for path in old if not path.startswith(taken))
    assert lines == [
        f"audio_backbone: {len(sound)} tensors of {tmp_path / 'sound'}",
        f"backbone: {len(image)} tensors of {tmp_path / 'image'}",
        f"pre_sam_backbone: {len(image)} tensors of {tmp_path / 'image'}",
    ]


def test_a_component_of_a_whole_model_is_taken(tmp_path, model):
    config, params, stats = model
    whole = {"params": shaped(params, "random"), "batch_stats": shaped(stats, "random")}
    checkpoint.save_variables(tmp_path / "whole", whole, config)
    chosen = with_init(config, backbone=tmp_path / "whole")
    after, _, (line, _) = load_parts(shaped(params), shaped(stats), chosen)
    want = whole["params"]["backbone"]["conv1"]["kernel"]
    np.testing.assert_array_equal(after["backbone"]["conv1"]["kernel"], want)
    assert line.startswith("backbone: ")
    chosen.model.backbone.width = 4
    with pytest.raises(ValueError, match="width: 2 in the folder, 4 now"):
        load_parts(shaped(params), shaped(stats), chosen)


def test_the_second_backbone_may_have_its_own_or_none(tmp_path, model):
    config, params, stats = model
    save(tmp_path / "a", model, "backbone")
    second = save(tmp_path / "b", model, "pre_sam_backbone", "backbone")
    for value, expected in ((tmp_path / "b", second["params/conv1/kernel"]), ("", 0.0)):
        chosen = with_init(config, backbone=tmp_path / "a", pre_sam_backbone=value)
        after, _, lines = load_parts(shaped(params), shaped(stats), chosen)
        kernel = after["pre_sam_backbone"]["conv1"]["kernel"]
        np.testing.assert_array_equal(kernel, np.broadcast_to(expected, kernel.shape))
        assert len(lines) == 1 + bool(value)
    assert load_parts(shaped(params), shaped(stats), config)[2] == []


def test_what_is_frozen_at_random_values_is_named(tmp_path, model):
    config, params, _ = model
    assert frozen_at_random(params, config) == []  # nothing is frozen
    config = config.copy_and_resolve_references()
    config.optim.frozen = ("audio_backbone/.*", "backbone/conv1/.*")
    lines = frozen_at_random(params, config)
    assert [line.split()[0] for line in lines] == ["audio_backbone", "backbone"]
    assert "--config.init.audio_backbone=DIR loads weights" in lines[0]
    config.init.update(audio_backbone=str(tmp_path), backbone=str(tmp_path))
    assert frozen_at_random(params, config) == []
    config.init.update(audio_backbone="", backbone="")
    config.train.init_from = str(tmp_path)
    assert frozen_at_random(params, config) == []


def test_a_model_without_the_second_branch(tmp_path, model):
    """'same' asks for nothing then; a folder of its own is a mistake."""
    config, params, stats = model
    save(tmp_path / "a", model, "backbone")
    params = shaped({k: v for k, v in params.items() if k != "pre_sam_backbone"})
    stats = shaped({k: v for k, v in stats.items() if k != "pre_sam_backbone"})
    lines = load_parts(params, stats, with_init(config, backbone=tmp_path / "a"))[2]
    assert len(lines) == 1
    with pytest.raises(ValueError, match="init.pre_sam_backbone=.*the model has no pre_sam_back"):
        load_parts(params, stats, with_init(config, pre_sam_backbone=tmp_path / "a"))


def test_folders_that_do_not_fit_are_refused(tmp_path, model):
    config, params, stats = model

    def refused(match, folder, **changes):
        chosen = with_init(config, backbone=tmp_path / folder)
        chosen.model.backbone.update(changes)
        with pytest.raises((ValueError, OSError), match=match):
            load_parts(shaped(params), shaped(stats), chosen)

    save(tmp_path / "sound", model, "audio_backbone")
    refused("holds a audio_backbone, expected a backbone", "sound")
    whole = {"params": shaped(params, "random"), "batch_stats": shaped(stats, "random")}
    other = config.copy_and_resolve_references()
    del other.model["backbone"]
    checkpoint.save_variables(tmp_path / "whole", whole, other)
    refused("holds a whole model without one, expected a backbone", "whole")
    save(tmp_path / "image", model, "backbone")
    refused(r"(?s)convert the file again.*width: 2 in the folder, 4 now", "image", width=4)
    load_parts(shaped(params), shaped(stats), with_init(config, backbone=tmp_path / "image"))
    refused("no checkpoint; looked for", "nowhere")
    younger = config.copy_and_resolve_references()
    del younger.model.backbone["width"]
    younger.model.backbone.remat = True  # as the key once was
    save(tmp_path / "older", (younger, params, stats), "backbone")
    load_parts(shaped(params), shaped(stats), with_init(config, backbone=tmp_path / "older"))

    def damage(variables):
        del variables["params"]["bn1"]["bias"]
        variables["params"]["conv1"]["kernel"] = np.zeros((7, 7, 3, 9), np.float32)
        variables["batch_stats"]["stranger"] = np.zeros(2, np.float32)

    save(tmp_path / "damaged", model, "backbone", change=damage)
    refused(
        r"damaged does not fit config.model.backbone \(config.init.backbone\), 3 tensor\(s\):\n"
        r"  bn1/bias \(2,\): not in the checkpoint\n"
        r"  conv1/kernel: \(7, 7, 3, 9\) in the checkpoint, \(7, 7, 3, 2\) in the model\n"
        r"  stranger \(2,\): not in the model",
        "damaged",
    )


class FirstStep(Exception):
    """Carries the state that the first step of training would have started from."""


@pytest.mark.slow
def test_the_training_program_starts_from_converted_files(tmp_path, model, monkeypatch, capsys):
    """Both command lines: files are converted, and training takes them after train.init_from."""
    config, params, stats = model
    recipe = tmp_path / "recipe.py"
    lines = (
        "from ml_collections import ConfigDict",
        "from tests.small import small_config",
        "def get_config():",
        "    config = small_config('none')",
        f"    config.model.backbone = ConfigDict({config.model.backbone.to_dict()})",
        "    config.train.ema_decay = 0.9",
        "    return config",
    )
    recipe.write_text("\n".join(lines))
    states = {}
    for source, part, rules in (
        ("resnet50", "backbone", resnet_rules("", "")),
        ("vggish", "audio_backbone", vggish_rules("", "")),
    ):
        tree = flat(shaped(params[part], "random"))
        statistics = flat(shaped(stats.get(part, {}), "random"))
        tree |= {f"batch_stats/{path}": x for path, x in statistics.items()}
        states[part] = tree
        np.savez(tmp_path / f"{source}.npz", **invert_rules(tree, rules, torch_names(source, tree)))
        flags = [f"--source={source}", f"--input={tmp_path / source}.npz", f"--config={recipe}"]
        flags.append(f"--output={tmp_path / part}")
        assert convert_weights.main(["convert_weights", *flags]) == 0
    whole = {"params": shaped(params, "random"), "batch_stats": shaped(stats, "random")}
    checkpoint.save_variables(tmp_path / "whole", whole, config)

    def first_step(state, batch, seed):
        raise FirstStep(jax.device_get(state))

    monkeypatch.setattr(program, "compile_ahead", lambda *_: (first_step, StepBytes(0, 0, 0, 0)))
    monkeypatch.setattr(program, "open_records", lambda *_: small.records(8))
    flags = [f"--config={recipe}", f"--workdir={tmp_path / 'run'}"]
    flags.append(f"--config.train.init_from={tmp_path / 'whole'}")
    flags += [f"--config.init.{part}={tmp_path / part}" for part in states]
    flags.append("--config.init.pre_sam_backbone=")
    with pytest.raises(FirstStep) as caught:
        main(["main", *flags])
    state = caught.value.args[0]
    for part, tree in states.items():
        started = flat(state.params[part])
        statistics = flat(state.batch_stats.get(part, {}))
        started |= {f"batch_stats/{path}": x for path, x in statistics.items()}
        assert started.keys() == tree.keys()
        for path, value in tree.items():
            np.testing.assert_array_equal(started[path], value, err_msg=f"{part} {path}")
    for part, name in (("pre_sam_backbone", "conv1"), ("predictor", "class_embed")):
        np.testing.assert_array_equal(
            state.params[part][name]["kernel"], whole["params"][part][name]["kernel"]
        )
    err = capsys.readouterr().err
    assert "pretrained components:\n  audio_backbone: " in err
    assert "\n  backbone: 85 tensors of" in err


def torch_names(source, tree):
    """Names, in PyTorch's words, of the tensors of one of our trees."""
    words = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    for path in tree:
        *modules, leaf = path.removeprefix("batch_stats/").split("/")
        modules = [re.sub(r"_(\d+)$", r".\1", module) for module in modules]
        yield ".".join([*modules, words.get(leaf, leaf)])


def test_a_whole_model_takes_what_fits_and_names_what_does_not(tmp_path):
    state = make_state()
    checkpoint.save_variables(tmp_path / "a", {"params": state.params}, segment_config())
    initial = make_state(seed=5)
    with pytest.raises(
        ValueError,
        match=r"does not fit config.model, .*init_fresh.*\n  ama/bn1/mean \(4,\): not in the c",
    ):
        init_from_checkpoint(initial.params, initial.batch_stats, tmp_path / "a", ())
    fresh = (r"ama/.*", r"logit_scale")
    params, stats, aside = init_from_checkpoint(
        initial.params, initial.batch_stats, tmp_path / "a", fresh
    )
    assert "logit_scale" in aside
    assert_same(params["backbone"], state.params["backbone"])
    assert_same(params["logit_scale"], initial.params["logit_scale"])
    assert_same(stats, initial.batch_stats)

    del initial.params["logit_scale"]  # a model that lacks what the checkpoint holds
    with pytest.raises(ValueError, match="logit_scale"):
        init_from_checkpoint(initial.params, initial.batch_stats, tmp_path / "a", fresh)
    params, _, aside = init_from_checkpoint(
        initial.params, initial.batch_stats, tmp_path / "a", fresh, (r"logit_scale",)
    )
    assert "logit_scale" not in params and "logit_scale" in aside


def test_what_a_run_starts_from_is_looked_for_before_the_model_is_built(tmp_path):
    config = small.tiny_config()
    check_sources(config)
    config.train.init_from = str(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="nowhere: no checkpoint"):
        check_sources(config)
    config.train.init_from, config.init.backbone = "", str(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="nothing: no checkpoint"):
        check_sources(config)
