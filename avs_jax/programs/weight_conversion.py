"""From a foreign state dict to the variables of a model: which table of rules a file takes.

Every tensor must match a parameter, and every parameter a tensor; convert_weights.py is the command
line, and says what else is done.
"""

import collections
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from avs_jax.convert import (
    clip_names,
    ground_names,
    sa2va_names,
    sam2_names,
    text_names,
    tpavi_names,
)
from avs_jax.convert.bias_tables import resize_bias_tables
from avs_jax.convert.rules import ConversionError, Rule, apply_rules
from avs_jax.convert.tables import (
    UNUSED_SOURCE_TENSORS,
    pvt_v2_rules,
    raft_rules,
    resnet_rules,
    swin_file_rules,
    vct_rules,
    vggish_rules,
)
from avs_jax.data.motion import num_channels
from avs_jax.models import build_model
from avs_jax.models.flow.raft import MIN_SIDE, RAFT
from avs_jax.models.inputs import example_inputs
from avs_jax.models.parts import find_part, make_part
from avs_jax.runtime.command_line import UsageError
from avs_jax.runtime.pretrained import load_parts
from avs_jax.runtime.step import init_variables
from avs_jax.spec import MASK_STRIDE, MEL_BANDS, MEL_FRAMES, SIZE_DIVISOR, InputError
from avs_jax.task import stack_rows
from avs_jax.tasks import make_task

BATCH_STATS = "batch_stats/"  # prefix of such paths in the rules' targets
MIXER = "sem_seg_head.predictor.visual_query_block.query_mixer.layers.0.weight"  # [D, pixels]


class Source(NamedTuple):
    """A family of weight files that hold the whole model of the tasks that name it.

    Attributes:
      rules: config.model -> table.
      unused: regex for names that no parameter uses and export needs.
      fresh: regexes for the paths that such files do not hold.
      components: that such files do not hold and config.init may.
      has_mixer: whether a parameter's shape depends on the image size.
      rename: state dict -> state dict with the names that `rules` know.
    """

    rules: Callable[[Mapping[str, Any]], list[Rule]]
    unused: str
    fresh: tuple[str, ...] = ()
    components: tuple[str, ...] = ()
    has_mixer: bool = False
    rename: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]] = lambda state: state


RAFT_SOURCE = "raft"  # a separate model, not described by a configuration
SOURCES = {
    "vct": Source(
        rules=vct_rules,
        unused=UNUSED_SOURCE_TENSORS,
        fresh=(r"(batch_stats/)?(ama|brm)/.*", r"predictor/visual_query_block/lambda"),
        has_mixer=True,
    ),
    "tpavi": Source(
        rules=tpavi_names.tpavi_rules,
        unused=tpavi_names.UNUSED_SOURCE_TENSORS,
        fresh=(r"audio_backbone/.*",),
        components=("audio_backbone",),
    ),
    "qd_detr": Source(
        rules=lambda _: ground_names.qd_detr_rules(),
        unused=ground_names.UNUSED_SOURCE_TENSORS,
    ),
    "sam2": Source(
        rules=sam2_names.sam2_rules,
        unused="",
        rename=sam2_names.original_layout,
    ),
    "sa2va": Source(
        rules=lambda _: sa2va_names.sa2va_rules(),
        unused="",
    ),
    "clip": Source(
        rules=lambda _: clip_names.clip_rules(),
        unused="",
        rename=clip_names.hf_from_original,
    ),
}


class Part(NamedTuple):
    """A family of weight files that hold one backbone.

    Attributes:
      section: the key of config.model that describes it.
      rules: (that section, names in the file) -> table.
      fresh: names in the file -> regexes for the paths that the file does not hold.
      describe: state dict -> that section, where the file tells it; then --config is not needed.
      rename: state dict -> state dict with the names that `rules` know.
    """

    section: str
    rules: Callable[[Mapping[str, Any], Collection[str]], list[Rule]]
    fresh: Callable[[Collection[str]], tuple[str, ...]] = lambda names: ()
    describe: Callable[[Mapping[str, np.ndarray]], dict[str, Any]] | None = None
    rename: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]] = lambda state: state


def swin_fresh(names: Collection[str]) -> tuple[str, ...]:
    """The norms of the four outputs, which VCT's Swin has and a classifier lacks."""
    has_norms = any(re.match(r"norm\d\.", name) for name in names)
    return () if has_norms else (r"norm\d/(scale|bias)",)


PARTS = {
    "swin": Part(
        "backbone",
        lambda config, names: swin_file_rules(config["depths"], names),
        swin_fresh,
    ),
    "pvt_v2": Part("backbone", lambda config, _: pvt_v2_rules("", "", config["depths"])),
    "resnet50": Part("backbone", lambda *_: resnet_rules("", "")),
    "hiera_fpn": Part(
        "backbone", lambda *_: sam2_names.encoder_rules(), rename=sam2_names.original_layout
    ),
    "vggish": Part(
        "audio_backbone", lambda config, _: vggish_rules("", "", bool(config.get("embedding")))
    ),
    "roberta": Part(
        "text", lambda *_: text_names.roberta_rules(), describe=text_names.roberta_section
    ),
}
NO_CONFIG = (RAFT_SOURCE, *(name for name, part in PARTS.items() if part.describe))


class Conversion(NamedTuple):
    """Result of `convert`.

    Attributes:
      variables: {"params", "batch_stats"}, nested, float32.
      fresh: paths that hold initial values.
      ignored: names in the source that no parameter uses.
      kept: the ignored tensors that export needs, unchanged.
      notes: sentences about anything else that was done.
    """

    variables: dict[str, dict]
    fresh: list[str]
    ignored: list[str]
    kept: dict[str, np.ndarray]
    notes: list[str]


def convert(
    state_dict: Mapping[str, np.ndarray], source: str, config: ConfigDict, strict: bool = False
) -> Conversion:
    """Maps a state dict to the variables of the model that a configuration describes.

    Args:
      state_dict: name -> array, as `read_state_dict` returns it.
      source: key of SOURCES.
      config: the whole configuration.
      strict: refuse to initialize anything.

    Raises:
      ConversionError: every mismatch, in one message.
      InputError: the configuration describes another model, or config.init names a component that
        does not fit.
    """
    family = SOURCES[source]
    known = make_task(config).weight_files
    if source not in known:
        raise InputError(
            f"--source={source}: the configuration is of task {config.task!r}, host "
            f"{config.get('host')!r}, whose files are {', '.join(known) or 'of no source'}"
        )
    init_dirs = {name: config.init[name] for name in family.components if config.init.get(name)}
    rules, fresh = family.rules(config.model), family.fresh
    state_dict = family.rename(state_dict)
    if strict and not init_dirs:
        fresh = ()
    size = image_size(state_dict, config) if family.has_mixer else None
    result = _fill(state_dict, rules, make_init(config, size), fresh, family.unused)
    if not init_dirs:
        return result
    config = config.copy_and_resolve_references()
    config.init = ConfigDict(init_dirs)
    params, batch_stats = (
        jax.device_put(result.variables[name]) for name in ("params", "batch_stats")
    )
    params, batch_stats, loaded = jax.device_get(load_parts(params, batch_stats, config))
    still_fresh = [path for path in result.fresh if path.split("/")[0] not in init_dirs]
    if strict and still_fresh:
        raise ConversionError(f"nothing fills {', '.join(still_fresh)}")
    return result._replace(
        variables={"params": params, "batch_stats": batch_stats}, fresh=still_fresh, notes=loaded
    )


def convert_part(
    state_dict: Mapping[str, np.ndarray], source: str, config: ConfigDict, strict: bool = False
) -> tuple[Conversion, ConfigDict]:
    """Maps the state dict of a backbone to the variables of that part of the model.

    Args:
      state_dict: name -> array, as `read_state_dict` returns it.
      source: key of PARTS.
      config: the whole configuration; reads the part's section of `model`, and `seed`.
      strict: refuse to initialize anything.

    Returns:
      the conversion, whose paths lack the part's name; the configuration to store with it, {"part":
      section, section: its configuration}, which runtime/pretrained.py compares.

    Raises:
      ConversionError: every mismatch, in one message.
      UsageError: the configuration describes another backbone.
    """
    part = PARTS[source]
    section = config.model[part.section]
    if section.name != source:
        raise UsageError(
            f"--source={source}: config.model.{part.section}.name is {section.name!r}; take a "
            "configuration that has the part, such as configs/s4_vct_pvt_v2.py"
        )
    notes, state_dict = [], part.rename(state_dict)
    if source == "swin":
        state_dict, resized = resize_bias_tables(state_dict, section.window_size)
        notes = [
            f"{count} tables of relative positions interpolated (bicubic) from window {window} to "
            f"{section.window_size}"
            for window, count in resized.items()
        ]
    rules = part.rules(section, state_dict)
    fresh = () if strict else part.fresh(state_dict)
    result = _fill(state_dict, rules, make_part_init(config, part.section), fresh)
    stored_config = ConfigDict({"part": part.section, part.section: section.to_dict()})
    return result._replace(notes=notes + result.notes), stored_config


def described_config(state_dict: Mapping[str, np.ndarray], source: str) -> ConfigDict:
    """The configuration of a part whose file tells its sizes."""
    part = PARTS[source]
    return ConfigDict({"seed": 0, "model": {part.section: part.describe(state_dict)}})


def _fill(
    state_dict: Mapping[str, np.ndarray],
    rules: Sequence[Rule],
    init: Callable[[], tuple[dict, dict]],
    fresh: Sequence[str],
    unused: str = "",
) -> Conversion:
    """Fills the variables of `init`; the paths in `fresh` may keep their initial values.

    The tensors that `unused` matches are stored for export.
    """
    wanted = flatten(*jax.eval_shape(init))
    shapes = {path: x.shape for path, x in wanted.items()}
    found = apply_rules(state_dict, rules, shapes, fresh, np.float32)
    missing = sorted(set(wanted) - set(found))
    if missing:

        @jax.jit  # XLA removes unused outputs, here all leaves that are not missing
        def initial():
            flat = flatten(*init())
            return {path: flat[path] for path in missing}

        found |= jax.device_get(initial())
    ignored = _ignored(state_dict, rules)
    return Conversion(
        unflatten(found),
        [path.removeprefix(BATCH_STATS) for path in missing],
        ignored,
        {name: state_dict[name] for name in ignored if re.fullmatch(unused, name)},
        [],
    )


def other_floats(state_dict: Mapping[str, np.ndarray]) -> list[str]:
    """Names of the tensors with another float dtype than float32."""
    return [
        name
        for name, x in state_dict.items()
        if x.dtype != np.float32 and (x.dtype.kind == "f" or x.dtype == ml_dtypes.bfloat16)
    ]


def cast(state_dict: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Converts other floats to float32; also returns a sentence per dtype.

    Raises:
      ConversionError: naming a tensor with numbers beyond float32's range.
    """
    result, kinds = dict(state_dict), collections.Counter()
    for name in other_floats(state_dict):
        kinds[str(state_dict[name].dtype)] += 1
        with np.errstate(over="ignore"):
            result[name] = state_dict[name].astype(np.float32)
        if (np.isinf(result[name]) & np.isfinite(state_dict[name])).any():
            raise ConversionError(f"{name}: {state_dict[name].dtype} beyond float32's range")
    return result, [f"{count} tensors of {kind} became float32" for kind, count in kinds.items()]


def flatten(params: Mapping, batch_stats: Mapping) -> dict[str, Any]:
    """Both collections as one flat tree, as rules address them."""
    flat = traverse_util.flatten_dict(params, sep="/")
    stats = traverse_util.flatten_dict(batch_stats, sep="/")
    return flat | {BATCH_STATS + path: x for path, x in stats.items()}


def unflatten(flat: Mapping[str, Any]) -> dict[str, dict]:
    """The inverse: {"params", "batch_stats"}."""
    stats = {p.removeprefix(BATCH_STATS): x for p, x in flat.items() if p.startswith(BATCH_STATS)}
    params = {path: x for path, x in flat.items() if not path.startswith(BATCH_STATS)}
    return {
        "params": traverse_util.unflatten_dict(params, sep="/"),
        "batch_stats": traverse_util.unflatten_dict(stats, sep="/"),
    }


def convert_raft(state_dict: Mapping[str, np.ndarray]) -> tuple[Conversion, ConfigDict]:
    """Maps a state dict of RAFT to its variables; its configuration is {"name": ...}.

    Raises:
      ConversionError: every mismatch, in one message.
    """
    is_large = any(re.match(r"(mask_predictor|update_block\.mask)\.", name) for name in state_dict)
    name, rules = "raft_large" if is_large else "raft_small", raft_rules()
    frames = np.zeros((1, MIN_SIDE, MIN_SIDE, 3), np.uint8)

    def init():
        tree = RAFT(name).init(jax.random.key(0), frames, frames, 1)
        return tree["params"], tree.get("batch_stats", {})

    return _fill(state_dict, rules, init, ()), ConfigDict({"name": name})


def _ignored(state_dict: Mapping[str, np.ndarray], rules: Sequence[Rule]) -> list[str]:
    """Names that a rule without a target matches."""
    ignored = [re.compile(rule.pattern) for rule in rules if rule.target is None]
    return [name for name in state_dict if any(pattern.fullmatch(name) for pattern in ignored)]


def image_size(state_dict: Mapping[str, np.ndarray], config: ConfigDict) -> tuple[int, int]:
    """(H, W) of the images that the file's query mixer accepts.

    The mixer is a linear layer over the stride-4 pixels, the only parameter whose shape depends on
    the image size. If it fits config.data.image_size, that is the answer; otherwise it is the size
    closest to a square with that number of pixels.
    """
    side = -(-config.data.image_size // SIZE_DIVISOR) * SIZE_DIVISOR
    mixer = state_dict.get(MIXER)
    if mixer is None or mixer.ndim != 2 or mixer.shape[1] == (side // MASK_STRIDE) ** 2:
        return side, side
    cell = (SIZE_DIVISOR // MASK_STRIDE) ** 2  # mixer pixels per coarsest cell
    cells, rest = divmod(mixer.shape[1], cell)
    if rest or not cells:
        return side, side  # no image has that many pixels, so the shapes will not match
    rows = max(n for n in range(1, math.isqrt(cells) + 1) if cells % n == 0)
    return rows * SIZE_DIVISOR, cells // rows * SIZE_DIVISOR


def make_init(
    config: ConfigDict, size: tuple[int, int] | None = None
) -> Callable[[], tuple[dict, dict]]:
    """() -> initial (params, batch_stats) of the configuration's model.

    Args:
      config: the whole configuration.
      size: (H, W) of the images of host "vct"; None: the inputs are those of the task.
    """
    if size is None:
        task = make_task(config)
        model = task.model
        inputs = task.inputs(stack_rows([task.rows.empty(train=False)], task.rows.fields))
    else:
        model = build_model(config.model)
        inputs = example_inputs(size, num_channels(config.data.motion))
    return lambda: init_variables(model, inputs, config.seed)


def make_part_init(config: ConfigDict, section: str) -> Callable[[], tuple[dict, dict]]:
    """() -> initial (params, batch_stats) of the part that config.model[section] describes."""
    described = config.model[section].to_dict()
    part = make_part(section, find_part(section, described), described)
    example = {
        "backbone": np.zeros((1, SIZE_DIVISOR, SIZE_DIVISOR, 3), np.float32),
        "audio_backbone": np.zeros((1, MEL_FRAMES, MEL_BANDS), np.float32),
        "text": np.zeros((1, 1), np.int32),
    }[section]

    def init():
        variables = part.init(jax.random.key(config.seed), example)
        return variables["params"], variables.get("batch_stats", {})

    return init
