"""What a compiled function takes: bytes per device, and the arithmetic of its matrix products."""

import dataclasses
import math
import re

import jax
from jax.extend import core

from avs_jax.spec import InputError

GIB, MIB = 2**30, 2**20
_UNITS = {"": 1, "B": 1} | {
    f"{prefix}{infix}B": base**power
    for infix, base in (("", 1000), ("i", 1024))
    for power, prefix in enumerate("KMGT", start=1)
}


@dataclasses.dataclass(frozen=True)
class StepBytes:
    """Bytes per device of one compiled function, as the compiler that made it plans them.

    Attributes:
      arguments: what is passed in.
      output: what is returned.
      shared: of the output, what takes the place of a donated argument.
      temporaries: between the two, at the worst moment.
    """

    arguments: int
    output: int
    shared: int
    temporaries: int

    @classmethod
    def of(cls, compiled: jax.stages.Compiled) -> "StepBytes":
        """Reads them off a compiled function."""
        analysis = compiled.memory_analysis()
        return cls(
            arguments=analysis.argument_size_in_bytes,
            output=analysis.output_size_in_bytes,
            shared=analysis.alias_size_in_bytes,
            temporaries=analysis.temp_size_in_bytes,
        )

    @property
    def total(self) -> int:
        """What must be free on a device to run it."""
        return self.arguments + self.output - self.shared + self.temporaries

    def as_scalars(self) -> dict[str, int]:
        """For a log: name -> bytes per device."""
        return {f"step_bytes/{name}": n for name, n in dataclasses.asdict(self).items()} | {
            "step_bytes/total": self.total
        }

    def __str__(self) -> str:
        unit, name = (GIB, "GiB") if self.total >= GIB / 10 else (MIB, "MiB")
        return (
            f"bytes per device: {self.total / unit:.2f} {name} = arguments "
            f"{self.arguments / unit:.2f} + temporaries {self.temporaries / unit:.2f} + output "
            f"beside the donated state {(self.output - self.shared) / unit:.2f}"
        )


def compile_ahead(step, state, batch) -> tuple[jax.stages.Compiled, StepBytes]:
    """The compiled step, and what it takes.

    Args:
      step: jitted.
      state, batch: ShapeDtypeStructs with shardings.
    """
    compiled = step.lower(state, batch).compile()
    return compiled, StepBytes.of(compiled)


def parse_bytes(text: str) -> int:
    """Bytes in "24GiB", "80 GB", "512MiB".

    Raises:
      ValueError: naming the text and the units.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2] not in _UNITS or float(match[1]) <= 0:
        units = ", ".join(unit for unit in _UNITS if unit)
        raise InputError(f"{text!r} is not an amount of memory: a number and one of {units}")
    return int(float(match[1]) * _UNITS[match[2]])


def count_flops(jaxpr: core.Jaxpr) -> int:
    """Floating-point operations of the matrix products and convolutions of a program.

    A multiply-add counts as two. The bodies of scans count as often as they run, which XLA's own
    cost analysis does not do; those of while loops, whose number of turns is unknown, once.

    Args:
      jaxpr: before it is cut over devices, so the count is that of all devices together.
    """
    total = 0
    for equation in jaxpr.eqns:
        name, out = equation.primitive.name, equation.outvars[0].aval if equation.outvars else None
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * math.prod(out.shape) * math.prod(shape[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            features = equation.params["dimension_numbers"].rhs_spec[0]
            total += 2 * math.prod(out.shape) * math.prod(kernel) // kernel[features]
        else:
            inner = [count_flops(body) for body in _bodies(equation.params)]
            turns = equation.params["length"] if name == "scan" else 1
            total += turns * (max(inner, default=0) if name == "cond" else sum(inner))
    return total


def _bodies(params: dict) -> list[core.Jaxpr]:
    """The programs that an operation runs: of a scan, a condition, a call."""
    found = []
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, core.Jaxpr):
                found.append(item)
    return found
