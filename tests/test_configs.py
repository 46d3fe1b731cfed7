"""Every configuration builds; model, criterion and optimiser accept it: shapes only, seconds."""

import functools
import importlib.util
import pathlib

import jax
import pytest

from avs_jax.data.clip import empty_clip
from avs_jax.data.pipeline import stack_clips
from avs_jax.losses.criterion import compute_losses
from avs_jax.models import build_model
from avs_jax.runtime.optim import assign_groups, base_learning_rate, split_frozen
from avs_jax.runtime.step import STREAMS, init_variables

ROOT = pathlib.Path(__file__).resolve().parent.parent
RECIPES = sorted(p.stem for p in (ROOT / "configs").glob("*.py") if p.stem != "base")
MS3_VARIANTS = ("v2", "regularized", "regularized_demo")
VARIANTS = [
    (name, variant)
    for name in RECIPES
    for variant in ("", "demo", *(MS3_VARIANTS if name.startswith("ms3") else ()))
]


def load(name: str, variant: str):
    spec = importlib.util.spec_from_file_location(f"configs.{name}", ROOT / f"configs/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant)


@pytest.mark.parametrize("name", RECIPES)
def test_unknown_variant_names_the_choices(name):
    with pytest.raises(ValueError, match="tiny.*demo"):
        load(name, "tiny")


@pytest.mark.parametrize(
    "setting, variant",
    [(setting, variant) for setting in ("s4", "ms3", "avss") for variant in ("", "demo")]
    + [("ms3", variant) for variant in MS3_VARIANTS],
)
def test_ama_differs_from_vct_in_motion_only(setting, variant):
    ama, vct = (load(f"{setting}_{model}", variant).to_dict() for model in ("ama", "vct"))
    assert ama.pop("name") == vct.pop("name").replace("vct", "ama")
    assert ama["data"]["motion"].pop("source") != vct["data"]["motion"].pop("source")
    assert ama["model"]["fusion"].pop("name") != vct["model"]["fusion"].pop("name")
    assert ama == vct


@pytest.mark.parametrize("setting", ["s4", "ms3", "avss"])
@pytest.mark.parametrize("variant", ["", "demo"])
def test_brm_differs_from_ama_in_the_refiner_and_its_loss_only(setting, variant):
    brm, ama = (load(f"{setting}_{model}", variant).to_dict() for model in ("ama_brm", "ama"))
    assert brm.pop("name") == ama.pop("name").replace("ama", "ama_brm")
    for section, key in (("model", "refiner"), ("loss", "boundary")):
        new, old = brm[section].pop(key), ama[section].pop(key)
        assert set(new) == set(old) and new != old
    assert brm == ama


@pytest.mark.parametrize("name, variant", VARIANTS)
def test_sizes_reach_the_model(name, variant):
    """The number of classes and prototypes is set once."""
    config = load(name, variant)
    assert config.model.num_classes == config.data.num_classes
    assert config.model.num_prototypes == config.data.num_prototypes
    assert config.name == name + (f"_{variant}" if variant else "")


def test_the_recipes_of_ms3():
    """The recorded ones, and that ours differs from the second where it says so."""
    recorded, second, ours = (load("ms3_ama", v) for v in ("", "v2", "regularized"))
    assert recorded.train.steps == 40_000 and recorded.train.eval_every == 500
    recorded.train.batch_size = 4
    assert base_learning_rate(recorded) == pytest.approx(1.4e-4, rel=0.02)
    assert base_learning_rate(second) == 7e-5
    assert (second.train.steps, second.train.eval_every) == (12_000, 500)
    fusion = ours.model.fusion
    rates = (fusion.attention_dropout, fusion.projection_dropout, fusion.map_dropout)
    assert rates == (0.1, 0.2, 0.2) and ours.train.ema_decay > 0 and ours.train.patience > 0
    factors = {
        path: (rate, decay * ours.optim.weight_decay)
        for path, (_, rate, decay) in assign_groups(
            [
                "ama/q_proj/kernel",
                "ama/audio_proj_1/bias",
                "ama/flow_encoder_1/scale",
                "predictor/visual_query_block/lambda",
                "backbone/layers_0/downsample/reduction/kernel",
            ],
            ours.optim.groups,
        ).items()
    }
    assert list(factors.values()) == [(0.5, 0.1), (0.5, 0), (0.5, 0), (1, 0.05), (0.1, 0.05)]
    assert base_learning_rate(ours) == 7e-5 and ours.train.steps == 12_000


@pytest.mark.parametrize(
    "name",
    [
        "ms3_ama",
        "avss_ama",
        "s4_ama_brm",
        "ms3_ama_brm",
        "avss_ama_brm",
        "s4_vct_pvt_v2",
        "s4_vct_resnet50",
    ],
)
def test_a_clip_goes_through_model_and_loss(name):
    """Shapes only: an empty training clip of the demo gives outputs and a scalar loss."""
    config = load(name, "demo")
    config.train.batch_size = 1
    batch = stack_clips([empty_clip(config, is_training=True)])
    model = build_model(config.model)
    params, stats = jax.eval_shape(functools.partial(init_variables, model, seed=0), batch)

    def loss(params, stats, key):
        keys = {name: jax.random.fold_in(key, i) for i, name in enumerate(STREAMS)}
        variables = {"params": params, "batch_stats": stats}
        outputs, _ = model.apply(variables, batch, train=True, rngs=keys, mutable=["batch_stats"])
        return outputs, compute_losses(outputs, batch, key, config.loss)

    outputs, (total, terms) = jax.eval_shape(loss, params, stats, jax.random.key(0))
    setting = name.split("_")[0]
    frames, classes = {"s4": (1, 2), "ms3": (5, 2), "avss": (4, 71)}[
        setting
    ]  # frames of a training clip
    assert outputs["pred_logits"].shape == (1, frames, 20, classes + 1)
    assert total.shape == () and ("loss_proto" in terms) == (setting != "ms3")
    assert ("edge_logits" in outputs) == ("loss_boundary" in terms) == name.endswith("brm")


def test_resnet_s_norms_are_frozen_whole():
    """As detectron2's: no statistics, no scale, no bias of 53 norms in each of two backbones."""
    config = load("s4_vct_resnet50", "")
    config.data.image_size = 64
    batch = stack_clips([empty_clip(config, is_training=True)])
    model = build_model(config.model)
    params, stats = jax.eval_shape(functools.partial(init_variables, model, seed=0), batch)
    frozen = split_frozen(params, config.optim.frozen)[1]
    norms = [path for path in frozen if not path.startswith("audio_backbone/")]
    assert len(norms) == 2 * 53 * 2 and all(path.endswith(("scale", "bias")) for path in norms)
    assert len(jax.tree.leaves(stats)) == 2 * 53 * 2
