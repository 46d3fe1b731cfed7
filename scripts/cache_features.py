"""Computes the maps of SAM2's frozen image encoder once, for training host "sam2" without it.

  python scripts/cache_features.py --config=configs/s4_sam2.py --output=DIR
      --config.init.sam2=checkpoints/sam2_base_plus [--splits=train,val,test]
  avs-jax train --config=configs/s4_sam2.py --workdir=RUN
      --config.init.sam2=checkpoints/sam2_base_plus --config.data.augment.flip=0
      --config.data.trunk_features=DIR

The folder belongs to these weights and this image size; others are an error, here and in training.
Maps are stored as float16: 8.4 MB per frame at 1024 px, 1.2 MB at 384 px. The script skips clips
that the folder holds, so the same command resumes an interrupted run. With configs/refer_sam2.py,
all expressions of a clip share its maps; name the splits: --splits=train,val,test_s,test_u,test_n.
"""

import pathlib
import sys
from collections.abc import Callable, Sequence

import jax
import numpy as np
from absl import flags

from avs_jax.data.clip import ClipRows
from avs_jax.data.records import open_records
from avs_jax.data.trunk_features import (
    FACTS,
    file_name,
    read_facts,
    write_facts,
    write_features,
)
from avs_jax.inference.trunk_weights import encoder_weights
from avs_jax.models import build_model
from avs_jax.models.inputs import prepare_images
from avs_jax.models.sam2.model import SAM2
from avs_jax.progress import tracked
from avs_jax.runtime.command_line import CommandLine, exit_status, parse
from avs_jax.runtime.compilation_cache import announce_compilation, use_compilation_cache
from avs_jax.runtime.lock import locked
from avs_jax.spec import TRUNK_MAPS, InputError
from avs_jax.stopping import run_as_program
from avs_jax.task import Record


def main(argv: Sequence[str]) -> int:
    """Parses the flags and computes; returns the exit status."""
    return exit_status(lambda: run(parse(argv, _define_flags, __doc__, required=("output",))))


def run(line: CommandLine) -> None:
    """`main` after parsing, with exceptions."""
    config, folder = line.config, pathlib.Path(line.values.output).expanduser()
    if config.get("host") != "sam2":
        raise InputError(f"config.host = {config.get('host')!r}: expected 'sam2'")
    params, key = encoder_weights(config)
    encode = make_encoder(config.model.sam2, params)
    rows = ClipRows(config)
    use_compilation_cache()
    announce_compilation("the image encoder")
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, "cache_features"):
        for split in line.values.splits:
            records = open_records(config, split)
            count = cache_records(records, rows, encode, folder, key)
            print(f"{folder}: {split}, {count} clips computed")


def make_encoder(sam2_config, params) -> Callable[[np.ndarray], tuple]:
    """uint8 images [T, H, W, 3] -> maps of a clip."""
    model = build_model(sam2_config, SAM2)

    @jax.jit
    def encode(images):
        pixels = prepare_images(images[None])
        frame = jax.lax.map(
            lambda x: model.apply({"params": params}, x[None], method="encode_images"), pixels
        )
        return [x[:, 0] for x in frame]

    return encode


def cache_records(
    records: Sequence[Record],
    rows: ClipRows,
    encode: Callable[[np.ndarray], tuple],
    folder: pathlib.Path,
    key: str,
) -> int:
    """Stores the clips that the folder lacks; returns how many."""
    count = 0
    for record in tracked(records, "maps", len(records), "clip"):
        name = file_name(record["frames"])
        if (folder / FACTS).is_file() and (folder / name).is_file():
            _check_facts(folder, key, rows.sizes["H"])
            continue
        row = rows.prepare(_without_truth(record), None)
        found = encode(row["images"])
        maps = dict(zip(TRUNK_MAPS, (np.asarray(x) for x in found), strict=True))
        if not (folder / FACTS).is_file():
            shapes = {k: x.shape[1:] for k, x in maps.items()}
            write_facts(folder, key, rows.sizes["H"], shapes)
        _check_facts(folder, key, rows.sizes["H"])
        write_features(folder, name, {k: x[row["valid"]] for k, x in maps.items()})
        count += 1
    return count


def _without_truth(record: Record) -> Record:
    """The clip of a record of either task, for its images alone."""
    names = ("clip_id", "frames", "waveform", "sample_rate")
    more = {"category": "", "category_label": 0, "pre_masks": (), "masks": (), "mask_index": ()}
    return {name: record[name] for name in names} | more


def _check_facts(folder: pathlib.Path, key: str, image_size: int) -> None:
    facts = read_facts(folder)
    for name, value in (("weights", key), ("image_size", image_size)):
        if facts[name] != value:
            raise InputError(
                f"{folder} holds features with {name} = {facts[name]!r}, now {value!r}; choose "
                "another folder"
            )


def _define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("output", None, "folder of the features", flag_values=values)
    flags.DEFINE_list("splits", ["train", "val", "test"], "splits to compute", flag_values=values)


if __name__ == "__main__":
    run_as_program(main, sys.argv)
