"""The cost of a compiled function: bytes per device, and FLOPs of its matrix products."""

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
    """Bytes per device of one compiled function, as planned by its compiler."""

    arguments: int
    output: int
    shared: int  # part of the output that reuses a donated argument
    temporaries: int  # peak of everything else

    @classmethod
    def of(cls, compiled: jax.stages.Compiled) -> "StepBytes":
        analysis = compiled.memory_analysis()
        return cls(
            arguments=analysis.argument_size_in_bytes,
            output=analysis.output_size_in_bytes,
            shared=analysis.alias_size_in_bytes,
            temporaries=analysis.temp_size_in_bytes,
        )

    @property
    def total(self) -> int:
        """The free memory needed to run it."""
        return self.arguments + self.output - self.shared + self.temporaries

    def as_scalars(self) -> dict[str, int]:
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


def compile_ahead(step, *inputs) -> tuple[jax.stages.Compiled, StepBytes]:
    """The jitted step, compiled for arrays or their ShapeDtypeStructs, and its bytes."""
    compiled = step.lower(*inputs).compile()
    return compiled, StepBytes.of(compiled)


def parse_bytes(text: str) -> int:
    """Bytes in "24GiB", "80 GB", "512MiB"; InputError names the text and the units."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2] not in _UNITS or float(match[1]) <= 0:
        units = ", ".join(unit for unit in _UNITS if unit)
        raise InputError(f"{text!r} is not an amount of memory: a number and one of {units}")
    return int(float(match[1]) * _UNITS[match[2]])


def count_flops(jaxpr: core.Jaxpr) -> int:
    """Floating-point operations of the matrix products and convolutions, over all devices.

    A multiply-add counts as two. Scan bodies count once per iteration, unlike in XLA's own cost
    analysis; bodies of while loops, whose number of iterations is unknown, count once.
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
            iterations = equation.params["length"] if name == "scan" else 1
            total += iterations * (max(inner, default=0) if name == "cond" else sum(inner))
    return total


def _bodies(params: dict) -> list[core.Jaxpr]:
    """The subprograms of an operation such as a scan, a condition or a call."""
    items = jax.tree.leaves(list(params.values()))
    bodies = (x.jaxpr if isinstance(x, core.ClosedJaxpr) else x for x in items)
    return [body for body in bodies if isinstance(body, core.Jaxpr)]
