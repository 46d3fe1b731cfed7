"""Exports a checkpoint's weights for other programs, or for this one in less space.

  avs-jax export --checkpoint=DIR --format=torch --output=model.pth
  avs-jax export --checkpoint=DIR --format=stablehlo --output=model.npz

--format=torch|safetensors|npz  the original's state dict (VCT, TPAVI, QD-DETR, SAM2, the part of
    Sa2VA that segments, or CLIP in Hugging Face's names) with its names, shapes and order, AMA's
    last. Tensors that `avs-jax convert` read come back bit for bit. It also stored those that no
    parameter uses (such as VGGish's unused MLP); a run that started from converted weights takes
    them from --kept_from=CONVERTED, or omits them with --allow_missing.
    PyTorch is not needed; `torch.load(FILE, weights_only=True)["model"]` reads the file.
--format=orbax      parameters and configuration without the optimizer state: a folder for predict,
    evaluate and config.train.init_from; --weights=raw|ema chooses which.
--format=stablehlo  forward pass, postprocessing and weights in one .npz that needs only JAX, for
    any number of clips and frames. See avs_jax/inference/stablehlo.py.

The configuration is the one stored with the checkpoint; --config.any.key=value overrides it.
"""

import pathlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from avs_jax.convert import clip_names, ground_names, sa2va_names, tpavi_names
from avs_jax.convert.names import module_versions, vct_names
from avs_jax.convert.rules import ConversionError, Rule, apply_rules, invert_rules
from avs_jax.convert.tables import vct_rules
from avs_jax.convert.writer import WRITERS, write_state_dict
from avs_jax.inference.predictor import Predictor
from avs_jax.inference.stablehlo import PLATFORMS, write_program
from avs_jax.models.backbones.swin import relative_position_index
from avs_jax.programs.weight_conversion import flatten
from avs_jax.runtime.checkpoint import WEIGHTS, Checkpoint, save_variables
from avs_jax.runtime.command_line import (
    UsageError,
    checkpoint_config,
    define_strings,
    exit_status,
    parse,
)
from avs_jax.spec import InputError
from avs_jax.stopping import run_as_program
from avs_jax.tasks import make_task

ORBAX, STABLEHLO = "orbax", "stablehlo"
# A projection of the original's AMA and counters of batches, which nothing reads.
UNREAD = r"ama_module\.v_proj\.weight|.*num_batches_tracked"


class Export(NamedTuple):
    """Result of `original_state_dict`.

    Attributes:
      state_dict: name -> array, in the original's order.
      missing: names of the original that are neither in the model nor among the kept tensors.
    """

    state_dict: dict[str, np.ndarray]
    missing: list[str]


class Original(NamedTuple):
    """A model of another program.

    Attributes:
      names: config.model -> names of its state dict, in order.
      rules: config.model -> table.
      constants: the whole configuration -> tensors that follow from it.
      elsewhere: regexes for paths of the tree whose tensors the original keeps in another file.
    """

    names: Callable[[Mapping[str, Any]], list[str]]
    rules: Callable[[Mapping[str, Any]], list[Rule]]
    constants: Callable[[ConfigDict], dict[str, np.ndarray]] = lambda config: {}
    elsewhere: tuple[str, ...] = ()


def _vct_constants(config: ConfigDict) -> dict[str, np.ndarray]:
    """The class weights of the loss, and the tables of Swin's windows."""
    index = relative_position_index(config.model.backbone.window_size).astype(np.int64)
    tables = [n for n in vct_names(config.model) if n.endswith(".relative_position_index")]
    return {"criterion.empty_weight": _class_weights(config), **dict.fromkeys(tables, index)}


ORIGINALS = {  # of Task.weight_files -> row
    "vct": Original(vct_names, vct_rules, _vct_constants),
    "tpavi": Original(
        tpavi_names.tpavi_names, tpavi_names.tpavi_rules, elsewhere=(r"audio_backbone/.*",)
    ),
    "sa2va": Original(sa2va_names.tracker_names, sa2va_names.tracker_rules),
    "qd_detr": Original(ground_names.qd_detr_names, lambda _: ground_names.qd_detr_rules()),
    "clip": Original(clip_names.clip_names, lambda _: clip_names.clip_rules()),
}


def original_state_dict(
    params: Mapping, batch_stats: Mapping, kept: Mapping[str, np.ndarray], config: ConfigDict
) -> Export:
    """The original's state dict from the variables of a model.

    Args:
      params, batch_stats: nested, from `Checkpoint.variables`.
      kept: from `Checkpoint.kept`.
      config: the whole configuration.

    Raises:
      ConversionError: the original has no such model, a parameter without a name there, or a name
        without its parameter.
    """
    known = [name for name in make_task(config).weight_files if name in ORIGINALS]
    if not known:
        raise ConversionError(f"no other program has the model of {config.name!r}")
    original = ORIGINALS[known[0]]
    tree = flatten(params, batch_stats)
    names, rules = original.names(config.model), original.rules(config.model)
    found = invert_rules(tree, rules, names)
    # Convert back, to raise if a parameter has no name.
    apply_rules(found, rules, {path: x.shape for path, x in tree.items()}, original.elsewhere)
    constant = original.constants(config)
    usable = {
        name: x
        for name, x in kept.items()
        if name not in constant or x.shape == constant[name].shape
    }
    found = constant | usable | found
    missing = [name for name in names if name not in found]
    return Export({name: found[name] for name in names if name in found}, missing)


def _class_weights(config: ConfigDict) -> np.ndarray:
    """float32 [K + 1]: ones, then the weight of "no object"."""
    weights = np.ones(config.model.num_classes + 1, np.float32)
    weights[-1] = config.loss.no_object_weight
    return weights


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the flags, exports and reports; returns the exit status."""
    return exit_status(lambda: run(sys.argv if argv is None else argv))


def run(argv: Sequence[str]) -> None:
    """`main`, with exceptions."""
    required = ("checkpoint", "format", "output")
    line = parse(argv, define_flags, __doc__, required, needs_config=False)
    values = line.values
    check_flags(values)
    output = pathlib.Path(values.output).expanduser()
    if output.exists():
        raise UsageError(f"--output={output} exists; choose a new name, nothing was written")
    checkpoint = Checkpoint.find(values.checkpoint)
    config, notes = checkpoint_config(line, checkpoint)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"reading {checkpoint.directory}", file=sys.stderr, flush=True)
    if values.format == STABLEHLO:
        _export_program(output, config, checkpoint, values)
        return
    params, batch_stats = checkpoint.variables(values.weights)
    if values.format == ORBAX:
        save_variables(output, {"params": params, "batch_stats": batch_stats}, config)
        size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
        print(f"{output}: parameters and configuration, {size / 1e6:,.1f} MB")
        return
    kept = checkpoint.kept()
    if values.kept_from:
        kept |= Checkpoint.find(values.kept_from).kept()
    try:
        result = original_state_dict(params, batch_stats, kept, config)
    except ConversionError as error:
        raise ConversionError(f"{values.checkpoint}, nothing was written: {error}") from error
    required = [name for name in result.missing if not re.fullmatch(UNREAD, name)]
    if required and not values.allow_missing:
        raise InputError(
            f"{values.checkpoint} lacks {len(required)} tensor(s) of the original: "
            f"{', '.join(required)}; --kept_from=DIR takes them from converted weights, "
            "--allow_missing leaves them out"
        )
    versions = module_versions(list(result.state_dict))
    write_state_dict(output, result.state_dict, values.format, versions)
    numbers = sum(x.size for x in result.state_dict.values())
    print(f"{output}: {len(result.state_dict)} tensors, {numbers:,} numbers")
    if result.missing:
        print(f"  left out: {', '.join(result.missing)}")


def _export_program(
    output: pathlib.Path, config: ConfigDict, checkpoint: Checkpoint, values: flags.FlagValues
) -> None:
    if output.suffix != ".npz":
        raise UsageError(f"--output={output}: --format={STABLEHLO} writes an .npz")
    with config.unlocked():
        config.evaluate.weights = values.weights
    predictor = Predictor(make_task(config), config, checkpoint)
    about = write_program(output, predictor, values.platforms)
    print(f"{output}: {output.stat().st_size / 1e6:,.1f} MB, {', '.join(about['platforms'])}")
    print(f"  program: {about['program_bytes'] / 1e6:,.1f} MB")
    for kind in ("inputs", "outputs"):
        for name, (dtype, *shape) in about[kind].items():
            print(f"  {kind[:-1]} {name}: {dtype} [{', '.join(map(str, shape))}]")


def check_flags(values: flags.FlagValues) -> None:
    """Raises UsageError for a flag that the format does not use."""
    for name, formats in (
        ("kept_from", WRITERS),
        ("allow_missing", WRITERS),
        ("platforms", (STABLEHLO,)),
    ):
        if values[name].present and values.format not in formats:
            raise UsageError(f"--{name} is not read with --format={values.format}")
    unknown = sorted(set(values.platforms) - set(PLATFORMS))
    if unknown or not values.platforms:
        raise UsageError(f"--platforms={','.join(values.platforms)}: choose of {PLATFORMS}")


def define_flags(values: flags.FlagValues) -> None:
    texts = {
        "checkpoint": "a run's working directory, one of its steps, or converted weights",
        "output": "file (orbax: folder) to write",
        "kept_from": "converted weights, for tensors that the checkpoint does not have",
    }
    define_strings(values, texts)
    formats = [*WRITERS, ORBAX, STABLEHLO]
    flags.DEFINE_enum("format", None, formats, "what to write", flag_values=values)
    which = "raw: the parameters; ema: their average; auto: the average if there is one"
    flags.DEFINE_enum("weights", "auto", ["auto", *WEIGHTS], which, flag_values=values)
    flags.DEFINE_bool("allow_missing", False, "omit missing tensors", flag_values=values)
    flags.DEFINE_list("platforms", "cpu,cuda", "to export the program for", flag_values=values)


if __name__ == "__main__":
    run_as_program(main)
