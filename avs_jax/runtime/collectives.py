"""What the devices of a compiled step send to each other, by kind and bytes.

A step needs the sums of the gradients, of the batch statistics, and of the losses and their norms.
Anything else means that XLA could not split an operation over the devices. A collective in a loop
whose length depends on data makes every device wait for all others in every iteration.
"""

import collections
import dataclasses
from collections.abc import Sequence

from avs_jax.runtime.hlo import Program, operand_bytes

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of a program.

    Attributes:
      kind: of KINDS.
      bytes: that a device puts in.
      runs: per call of the program; None in a loop whose length depends on data.
      op_name: what it computes, as in JAX's source.
    """

    kind: str
    bytes: int
    runs: int | None
    op_name: str


def find_collectives(program: Program) -> list[Collective]:
    """All collectives of a program."""
    found = []
    for instruction, computation, runs in program.executed():
        kind = instruction.opcode.removesuffix("-start")
        if kind in KINDS:
            size = operand_bytes(instruction, computation)
            found.append(Collective(kind, size, runs, instruction.op_name))
    return found


def describe_collectives(found: Sequence[Collective]) -> str:
    """One line per kind; collectives in loops of unknown length have lines of their own."""
    rows: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0, 0])
    for collective in found:
        is_counted = collective.runs is not None
        place = "" if is_counted else ", in each iteration of a loop of unknown length"
        runs = collective.runs if is_counted else 1
        for i, value in enumerate((1, runs, runs * collective.bytes)):
            rows[collective.kind + place][i] += value
    lines = [
        f"  {kind}: {count} in the program, run {runs} times, {size:,} bytes"
        for kind, (count, runs, size) in sorted(rows.items())
    ]
    return "\n".join(["collectives per step and device:", *(lines or ["  none"])])
