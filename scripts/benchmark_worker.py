"""Both sides of scripts/benchmark.py: a program that builds a case and runs it on request.

Lines on stdin: "run" for one repetition, anything else to end. Lines on stdout: one JSON object
when ready ({"device", "frames"}), one per repetition ({"seconds"}), one at the end ({"bytes"}).
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from absl import flags
from ml_collections import ConfigDict

from avs_jax.runtime.command_line import parse
from avs_jax.spec import InputError


@dataclasses.dataclass(frozen=True)
class Case:
    """Something to time.

    Attributes:
      run: runs one repetition to completion.
      count_bytes: returns the bytes needed, after the repetitions.
      device: name of the device.
      frames: number of frames (pairs) per repetition.
    """

    run: Callable[[], None]
    count_bytes: Callable[[], int]
    device: str
    frames: int


# (configuration, case, flags) -> case
Builder = Callable[[ConfigDict, str, flags.FlagValues], Case]


def serve(argv: Sequence[str], builders: Mapping[str, Builder], description: str) -> int:
    """Builds the case of --case="BLOCK MODE" and serves stdin; returns the exit status."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("case", None, "block and mode, as 'swin train'", flag_values=values)
        flags.DEFINE_string("device", "cpu", "cpu or gpu", flag_values=values)
        flags.DEFINE_integer("frames", 1, "frames (pairs) of a block", flag_values=values)
        flags.DEFINE_integer("clips", 1, "clips of `step`", flag_values=values)
        flags.DEFINE_bool("original_frames", False, "see benchmark.py", flag_values=values)
        flags.DEFINE_bool("original_attention", False, "see benchmark.py", flag_values=values)

    try:
        config, values, _ = parse(argv, define, description, required=["case"])
        block, mode = values.case.split(" ")
        if block not in builders:
            raise InputError(f"--case={values.case}: choose a block of {sorted(builders)}")
        case = builders[block](config, mode, values)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    _say(device=case.device, frames=case.frames)
    for line in sys.stdin:
        if line.strip() != "run":
            break
        begun = time.perf_counter()
        case.run()
        _say(seconds=time.perf_counter() - begun)
    _say(bytes=case.count_bytes())
    return 0


def sizes(config: ConfigDict) -> list[tuple[int, int]]:
    """(side, channels) of the backbone's maps at strides 4, 8, 16 and 32."""
    dim, side = config.model.backbone.embed_dim, config.data.image_size
    return [(side // (4 << i), dim << i) for i in range(4)]


def _say(**fields) -> None:
    print(json.dumps(fields), flush=True)
