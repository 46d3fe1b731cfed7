"""Converts a weight file of another program to an Orbax checkpoint for training and prediction.

  avs-jax convert --source=vct --input=model_best.pth --config=configs/s4_vct.py
      --output=checkpoints/vct_s4
  avs-jax convert --source=swin --input=swin_base_patch4_window12_384_22k.pth
      --config=configs/s4_vct.py --output=checkpoints/swin_b
  avs-jax convert --source=raft --input=raft_large_C_T_SKHT_V2-ff5fadd5.pth
      --output=checkpoints/raft_large

  source    becomes                      layouts
  vct       the whole model              spyflying/VCT_AVS
  tpavi     the whole model              OpenNLPLab/AVSBench, without its VGGish
  qd_detr   the whole model              wjun0830/QD-DETR, and its fork with gated fusion
  sam2      the whole model, 2.0 or 2.1  facebookresearch/sam2's, transformers'
  sa2va     SAM2 and what prompts it     magic-research/Sa2VA, without its language model
  clip      the whole model (align_clip) Hugging Face's CLIPModel, OpenAI's state dicts
  swin      config.model.backbone        Microsoft's, timm's, VCT's backbone alone
  pvt_v2    config.model.backbone        the official one and AVSBench's encoder, timm's
  hiera_fpn config.model.backbone        as sam2: the image encoder alone
  resnet50  config.model.backbone        torchvision's, AVSBench's two-branch net
  vggish    config.model.audio_backbone  AVSBench's and VCT's
  roberta   config.model.text            Hugging Face's roberta-base, distilroberta-base
  raft      RAFT, a separate model       torchvision's, princeton-vl's

Input: .npz, .safetensors, .pth, .pt or .pkl. Nothing in it is executed, and a file whose tensors
take more memory than --max_size is refused before it is read.

Every tensor must match a parameter, and every parameter a tensor; otherwise all mismatches are
listed and nothing is written. Parameters that such files do not have (AMA and BRM, for VCT) are
initialized from the configuration's seed and listed; --strict refuses that. TPAVI's audio backbone
is in a file of its own: convert that one first, then pass --config.init.audio_backbone=DIR here.
Parameters are float32: tensors of another dtype are refused, but --cast converts other floats. For
a Swin with another window size, the tables of relative positions are interpolated, and a note says
so.

To train from a converted backbone, pass --config.init.backbone=DIR or --config.init.audio_backbone
=DIR or --config.init.text=DIR. RAFT and RoBERTa take no configuration, since their files tell their
sizes; `flow` and `predict` read RAFT's result.
"""

import collections
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence

import numpy as np
from absl import flags
from flax import traverse_util
from ml_collections import ConfigDict

from avs_jax.convert.reader import MAX_SIZE, read_state_dict
from avs_jax.convert.rules import ConversionError
from avs_jax.programs.weight_conversion import (
    NO_CONFIG,
    PARTS,
    RAFT_SOURCE,
    SOURCES,
    Conversion,
    cast,
    convert,
    convert_part,
    convert_raft,
    described_config,
    image_size,
    other_floats,
)
from avs_jax.runtime.checkpoint import save_variables
from avs_jax.runtime.command_line import UsageError, exit_status, parse
from avs_jax.runtime.memory import parse_bytes
from avs_jax.spec import MASK_STRIDE
from avs_jax.stopping import run_as_program


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the flags, converts and reports; returns the exit status."""
    return exit_status(lambda: run(sys.argv if argv is None else argv))


def run(argv: Sequence[str]) -> None:
    """`main`, with exceptions."""
    required = ("source", "input", "output")
    config, values, overrides = parse(argv, define_flags, __doc__, required, needs_config=False)
    needs_config = values.source not in NO_CONFIG
    if needs_config != (config is not None) or overrides and not needs_config:
        what = "needs --config" if needs_config else "needs no --config"
        raise UsageError(f"--source={values.source} {what}; --help lists the flags")
    output = pathlib.Path(values.output).expanduser()
    if output.exists():
        raise UsageError(f"--output={output} exists; choose a new folder, nothing was written")
    print(f"reading {values.input}", file=sys.stderr, flush=True)
    state_dict, notes = read_state_dict(values.input, parse_bytes(values.max_size)), []
    stored_config = config
    try:
        if values.cast:
            state_dict, notes = cast(state_dict)
        if values.source == RAFT_SOURCE:
            result, stored_config = convert_raft(state_dict)
        elif values.source in PARTS:
            config = config or described_config(state_dict, values.source)
            result, stored_config = convert_part(state_dict, values.source, config, values.strict)
        else:
            result = convert(state_dict, values.source, config, values.strict)
    except ConversionError as error:
        hint = "\n(--cast turns other floats into float32)" if other_floats(state_dict) else ""
        raise ConversionError(f"{values.input}, nothing was written: {error}{hint}") from error
    print(f"writing {output}", file=sys.stderr, flush=True)
    save_variables(output, result.variables, stored_config, result.kept)
    report(values, state_dict, result._replace(notes=notes + result.notes), config or stored_config)


def report(
    values: flags.FlagValues,
    state_dict: Mapping[str, np.ndarray],
    result: Conversion,
    config: ConfigDict,
) -> None:
    """Prints which tensors were used and which were not."""
    output = values.output
    params = traverse_util.flatten_dict(result.variables["params"], sep="/")
    count = sum(leaf.size for leaf in params.values())
    print(f"{output}: {len(state_dict) - len(result.ignored)} tensors of {values.input} used")
    print(f"  parameters: {count:,} in {len(params)} leaves")
    print(f"  ignored on purpose: {summary(result.ignored)}")
    if result.kept:
        print(f"  of these, stored for export: {summary(list(result.kept))}")
    if result.fresh:
        print(f"  freshly initialized (seed {config.seed}): {', '.join(result.fresh)}")
    for note in result.notes:
        print(f"  {note}")
    if values.source == RAFT_SOURCE:
        print(f"  {config.name}: avs-jax flow --model={config.name} --weights={output}")
    elif values.source in PARTS:
        print(f"  to train from it: --config.init.{PARTS[values.source].section}={output}")
    elif SOURCES[values.source].has_mixer:
        report_size(image_size(state_dict, config), config)


def report_size(size: tuple[int, int], config: ConfigDict) -> None:
    """Prints a note if the file's query mixer is for other images than the configuration's."""
    if max(size) != min(size) or size[0] != config.data.image_size:
        pixels = size[0] * size[1] // MASK_STRIDE**2
        print(
            f"  note: the query mixer is made for {pixels} pixels at stride {MASK_STRIDE}, images "
            f"of e.g. {size[0]} x {size[1]} px; config.data.image_size is {config.data.image_size}"
        )


def define_flags(values: flags.FlagValues) -> None:
    """The flags other than --config."""
    flags.DEFINE_enum(
        "source",
        None,
        sorted([*SOURCES, *PARTS, RAFT_SOURCE]),
        "kind of weight file",
        flag_values=values,
    )
    flags.DEFINE_string("input", None, "the weight file", flag_values=values)
    flags.DEFINE_string("output", None, "folder to create", flag_values=values)
    flags.DEFINE_bool("strict", False, "refuse to initialize parameters", flag_values=values)
    flags.DEFINE_bool("cast", False, "convert other floats to float32", flag_values=values)
    flags.DEFINE_string(
        "max_size",
        f"{MAX_SIZE >> 30}GiB",
        "memory that the file's tensors may take, such as 64GiB",
        flag_values=values,
    )


def summary(names: Sequence[str]) -> str:
    """The names; counts those that differ only in numbers together: "layers.*.index (24)"."""
    kinds = collections.Counter(re.sub(r"\d+", "*", name) for name in names)
    listed = (f"{kind} ({count})" if count > 1 else kind for kind, count in kinds.items())
    return ", ".join(listed) or "nothing"


if __name__ == "__main__":
    run_as_program(main)
