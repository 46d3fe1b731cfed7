"""Every configuration builds; model, loss, optimizer and step accept it: shapes only, seconds."""

import ast
import functools
import gzip
import importlib.util
import json
import pathlib
import re

import jax
import pytest

from avs_jax.runtime.optim import assign_groups, base_learning_rate, flatten, split_frozen
from avs_jax.runtime.step import init_variables
from avs_jax.spec import InputError
from avs_jax.task import stack_rows
from avs_jax.tasks import make_task
from tests import small

ROOT = pathlib.Path(__file__).resolve().parent.parent
RECIPES = sorted(
    p.stem for p in (ROOT / "configs").glob("*.py") if "def get_config(" in p.read_text()
)
TPAVI = [name for name in RECIPES if "_tpavi_" in name]
SETTINGS = [name for name in RECIPES if name.split("_")[0] in ("s4", "ms3", "avss")]
PROMPTED = [name for name in SETTINGS if name.endswith("_sam2")]
SEGMENT = [name for name in SETTINGS if name not in (*TPAVI, *PROMPTED)]
PREDICTING = [name for name in RECIPES if name.startswith("sam2_")]
OTHERS = [name for name in RECIPES if name not in (*SETTINGS, *PREDICTING)]
MS3_VARIANTS = ("v2", "regularized", "regularized_demo")
VARIANTS = [
    (name, variant)
    for name in SEGMENT
    for variant in ("", "demo", "tiny", *(MS3_VARIANTS if name.startswith("ms3") else ()))
]


def load(name: str, variant: str):
    spec = importlib.util.spec_from_file_location(f"configs.{name}", ROOT / f"configs/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant)


@pytest.mark.parametrize("name", RECIPES)
def test_unknown_variant_names_the_choices(name):
    with pytest.raises(ValueError, match="'small': choose nothing or one of .*tiny"):
        load(name, "small")


@pytest.mark.parametrize(
    "setting, variant",
    [(setting, variant) for setting in ("s4", "ms3", "avss") for variant in ("", "demo")]
    + [("ms3", variant) for variant in MS3_VARIANTS],
)
def test_ama_differs_from_vct_in_motion_only(setting, variant):
    ama, vct = (load(f"{setting}_{model}", variant).to_dict() for model in ("ama", "vct"))
    assert ama.pop("name") == vct.pop("name").replace("vct", "ama")
    assert ama["data"]["motion"].pop("source") != vct["data"]["motion"].pop("source")
    assert ama["model"].pop("fusion")["name"] == "ama"
    assert vct["model"].pop("fusion") == {"name": "none"}
    assert ama == vct


@pytest.mark.parametrize("setting", ["s4", "ms3", "avss"])
@pytest.mark.parametrize("variant", ["", "demo"])
def test_brm_differs_from_ama_in_the_refiner_and_its_loss_only(setting, variant):
    brm, ama = (load(f"{setting}_{model}", variant).to_dict() for model in ("ama_brm", "ama"))
    assert brm.pop("name") == ama.pop("name").replace("ama", "ama_brm")
    for section, key in (("model", "refiner"), ("loss", "boundary")):
        new, old = brm[section].pop(key), ama[section].pop(key)
        assert set(old) <= set(new) and new != old
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


# The other recipes differ in values of the same parts.
QUICK = {("s4_ama", ""), ("s4_vct_pvt_v2", "tiny"), ("s4_vct_resnet50", "tiny")}


@functools.cache
def golden_parameters(folder: pathlib.Path) -> dict[str, dict]:
    """Recipe and variant -> {"params", "batch_stats"} -> path -> shape."""
    with gzip.open(folder / "parameters.json.gz", "rt") as file:
        return json.load(file)


def test_the_golden_of_parameters_is_read_whole(golden_dir):
    """Every entry belongs to a recipe of today: none is lost by a new name."""
    pairs = {f"{name}:{variant}" for name, variant in VARIANTS if variant != "tiny"}
    golden = golden_parameters(golden_dir)
    assert len(golden) == 44 and set(golden) <= pairs
    assert all(entry.keys() == {"params", "batch_stats"} for entry in golden.values())


@pytest.mark.parametrize(
    "name, variant",
    [pytest.param(*pair, marks=() if pair in QUICK else pytest.mark.slow) for pair in VARIANTS],
)
def test_every_recipe_makes_a_training_step(name, variant, golden_dir):
    """Model, loss, optimizer and step accept each other: shapes only, of one row per device.

    Path -> shape of all parameters is a contract with checkpoints and weight tables.
    """
    config = load(name, variant)
    config.train.batch_size = 8
    setup = small.train_setup(config)
    # False sounds change the data alone. A recipe that is newer than the golden has no entry.
    want = golden_parameters(golden_dir).get(f"{name.removesuffix('_robust')}:{variant}", {})
    for kind, leaves in want.items():
        found = flatten(getattr(setup.state, kind))
        assert {path: list(x.shape) for path, x in found.items()} == leaves
    state, metrics = jax.eval_shape(setup.make_train_step(), *setup.step_shapes())
    assert jax.tree.structure(state) == jax.tree.structure(setup.state)
    assert metrics["total_loss"].shape == () and "loss_ce" in metrics
    assert ("loss_proto" in metrics) == (not name.startswith("ms3"))
    assert ("loss_boundary" in metrics) == ("boundary_ramp" in metrics) == name.endswith("brm")
    assert ("tau" in metrics) == ("ama" in name)


@pytest.mark.parametrize(
    "name",
    [n if n == "s4_tpavi_resnet50" else pytest.param(n, marks=pytest.mark.slow) for n in TPAVI],
)
@pytest.mark.parametrize(
    "variant", ["tiny", *(pytest.param(v, marks=pytest.mark.slow) for v in ("", "demo"))]
)
def test_recipes_of_the_baselines_make_a_training_step(name, variant):
    config = load(name, variant)
    assert config.model.num_classes == config.data.num_classes
    assert config.name == name + (f"_{variant}" if variant else "")
    config.train.batch_size = 8
    setup = small.train_setup(config)
    _, metrics = jax.eval_shape(setup.make_train_step(), *setup.step_shapes())
    assert metrics["total_loss"].shape == () and "loss_seg" in metrics
    assert ("loss_av" in metrics) == (not name.startswith("s4"))
    frozen = split_frozen(setup.state.params, config.optim.frozen)[1]
    assert bool(frozen) == (not variant)  # the small versions train VGGish too
    assert all(path.startswith("audio_backbone/") for path in frozen)
    config.data.train_frames = "supervised"
    with pytest.raises(InputError, match="frames meet in host 'tpavi'"):
        make_task(config)


@pytest.mark.parametrize(
    "name, variant",
    [
        pytest.param(name, v, marks=() if (name, v) == ("s4_sam2", "tiny") else pytest.mark.slow)
        for name in PROMPTED
        for v in ("", "demo", "tiny")
    ],
)
def test_recipes_of_sam2_make_a_training_step(name, variant):
    """The trunk is frozen but in the demo; what nothing reads is frozen everywhere."""
    config = load(name, variant)
    assert config.model.num_classes == config.data.num_classes
    assert config.name == name + (f"_{variant}" if variant else "")
    config.train.batch_size = 8
    setup = small.train_setup(config)
    _, metrics = jax.eval_shape(setup.make_train_step(), *setup.step_shapes())
    terms = {"loss_focal", "loss_dice", "loss_iou", "loss_presence"}
    assert terms <= set(metrics) and ("loss_class" in metrics) == name.startswith("avss")
    trained, frozen = split_frozen(setup.state.params, config.optim.frozen)
    assert any(path.startswith("sam2/trunk/") for path in (frozen if not variant else trained))
    assert any(path.startswith("sam2/mask_decoder/transformer/") for path in trained)
    has_memory = any(path.startswith("sam2/memory_attention/") for path in trained)
    assert has_memory == config.model.memory == name.startswith("avss")


LOSS_OF_TASK = {
    "ground": "loss_saliency",
    "refer": "loss_presence",
    "align": "loss_",
    "classify": "loss_class",
    "describe": "loss_words",
}


# The others of their tasks compile more, or differ in values of the same parts.
QUICK_OTHERS = [f"{task}_generated" for task in ("align", "classify", "describe", "ground")]
QUICK_OTHERS += ["refer_cma", "qvh_qd_detr", "qvh_avigate", "qvh_custom"]


# The features of these come from other programs' encoders: the demo of ground is its own recipe.
WITHOUT_DEMO = ("qvh_", "tvsum_")
OTHER_VARIANTS = [
    (name, variant)
    for name in OTHERS
    for variant in ("", "demo", "tiny")
    if variant != "demo" or not name.startswith(WITHOUT_DEMO)
]


@pytest.mark.parametrize(
    "name, variant",
    [
        pytest.param(n, v, marks=() if n in QUICK_OTHERS and v == "tiny" else pytest.mark.slow)
        for n, v in OTHER_VARIANTS
    ],
)
def test_recipes_of_other_tasks_make_a_training_step(name, variant):
    config = load(name, variant)
    config.train.batch_size = 8
    setup = small.train_setup(config)
    _, metrics = jax.eval_shape(setup.make_train_step(), *setup.step_shapes())
    assert metrics["total_loss"].shape == ()
    assert any(found.startswith(LOSS_OF_TASK[config.task]) for found in metrics)
    assert config.name == name + (f"_{variant}" if variant else "")


@pytest.mark.parametrize("name, variant", [*OTHER_VARIANTS, ("describe_refavs", "lstm")])
def test_augmentation_keeps_what_expressions_name(name, variant):
    """Colors and sides: "the guitar on the left" is not mirrored."""
    config = load(name, variant)
    if config.task in ("refer", "describe"):
        augment = config.data.augment
        assert (augment.color, augment.flip) == (False, 0.0)


@functools.cache
def init_rules_and_shapes(name):
    """Of a recipe's `:tiny`: config.train, path -> shape of its parameters and its statistics."""
    config = load(name, "tiny")
    if "decoder" in config.model:
        config.model.decoder.num_layers = 3  # that of task refer has 2, in this variant alone
    task = make_task(config)
    example = task.inputs(stack_rows([task.rows.empty(train=True)], task.rows.fields))
    init = functools.partial(init_variables, task.model, seed=0)
    trees = jax.eval_shape(init, example)
    return config.train, *({path: x.shape for path, x in flatten(tree).items()} for tree in trees)


def matching(paths, patterns):
    return {path for path in paths if any(re.fullmatch(rule, path) for rule in patterns)}


@pytest.mark.parametrize("name", ["avss_vct", "avss_tpavi_resnet50"])
def test_demo_of_avss_starts_from_that_of_s4(name):
    (_, theirs, _), (train, ours, _) = (
        init_rules_and_shapes(of) for of in (name.replace("avss", "s4"), name)
    )
    fresh, dropped = matching(ours, train.init_fresh), matching(theirs, train.init_dropped)
    assert ours.keys() - fresh == theirs.keys() - fresh - dropped
    assert {path for path in ours.keys() & theirs.keys() if ours[path] != theirs[path]} <= fresh
    assert fresh


STARTS = (
    "s4_vct",
    "s4_ama",
    "s4_ama_brm",
    "s4_ama_sync",
    "s4_query_fusion",
    "ms3_ama",
    "ms3_ama_brm",
    "ms3_vct_divided",
)


@pytest.mark.parametrize("start", [*STARTS, "avss_vct", "avss_ama", "avss_ama_brm"])
@pytest.mark.parametrize("name", ["refer_vct", "refer_cma"])
def test_referring_starts_from_segmentation(name, start):
    """By the recipe's own rules; from AVSS, whose classes do not fit, with the documented flag."""
    train, *ours = init_rules_and_shapes(name)
    _, *theirs = init_rules_and_shapes(start)

    def misfits(init_fresh):
        found, used = set(), set()
        for mine, stored in zip(ours, theirs, strict=True):
            fresh, dropped = matching(mine, init_fresh), matching(stored, train.init_dropped)
            mine = {path: shape for path, shape in mine.items() if path not in fresh}
            stored = {path: x for path, x in stored.items() if path not in fresh | dropped}
            found |= {path for path in mine.keys() | stored if mine.get(path) != stored.get(path)}
            used |= set(mine)
        return found, used

    classes = {"predictor/class_embed/kernel", "predictor/class_embed/bias"}
    found, used = misfits(train.init_fresh)
    assert found == (classes if start.startswith("avss") else set())
    # Nearly everything is of the checkpoint.
    assert {path.split("/")[0] for path in used} == {
        *("backbone", "audio_backbone", "audio_transformation", "pixel_decoder", "predictor")
    }
    recipe = (ROOT / "configs/refer_vct.py").read_text()
    flag = re.search(r'^  --config\.train\.init_fresh="(.*)"$', recipe, re.MULTILINE)[1]
    assert misfits(ast.literal_eval(flag)) == (set(), used - classes)


@pytest.mark.parametrize(
    "name, variant",
    [
        (name, variant)
        for name in PREDICTING
        for variant in ("", "v2.0", "tiny")
        if (name, variant) != ("sam2_sa2va", "v2.0")  # it is of that version
    ],
)
def test_recipes_that_only_predict_build_a_model(name, variant):
    """Shapes of the parameters; their names and those of published files: test_sam2_names."""
    config = load(name, variant)
    if variant == "":
        config.data.image_size = 64
    task = make_task(config)
    example = task.inputs(stack_rows([task.rows.empty(train=False)], task.rows.fields))
    if variant == "tiny" or name == "sam2_tiny":
        params, _ = jax.eval_shape(functools.partial(init_variables, task.model, seed=0), example)
        assert {"trunk", "neck", "memory_attention", "mask_decoder"} <= set(params)
    assert config.name == name + (f"_{variant}" if variant else "")
    with pytest.raises(InputError, match="predicts only"):
        task.loss({}, {}, None, None)


def test_resnet_norms_are_frozen_whole():
    """As detectron2's: no statistics, no scale, no bias of 53 norms in each of two backbones."""
    config = load("s4_vct_resnet50", "")
    task = make_task(config)
    example = task.inputs(stack_rows([task.rows.empty(train=True)], task.rows.fields))
    params, stats = jax.eval_shape(functools.partial(init_variables, task.model, seed=0), example)
    frozen = split_frozen(params, config.optim.frozen)[1]
    norms = [path for path in frozen if not path.startswith("audio_backbone/")]
    assert len(norms) == 2 * 53 * 2 and all(path.endswith(("scale", "bias")) for path in norms)
    assert len(jax.tree.leaves(stats)) == 2 * 53 * 2


def test_a_missing_key_is_named():
    config = load("s4_ama", "tiny")
    with config.unlocked():
        del config.evaluate.moving_threshold
    with pytest.raises(InputError, match="of task segment lacks 'moving_threshold'"):
        make_task(config)
