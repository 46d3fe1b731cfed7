"""Reads the text of a compiled program (XLA's HLO): instructions, shapes, how often they run.

  program = Program.parse(compiled.as_text())
  for instruction, runs in program.executed(): ...

A computation runs as often as its callers do: once for the entry, once per iteration for the body
of a loop. The number of iterations of a loop whose end depends on data is unknown.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_BITS = {"pred": 8, "token": 0, "opaque": 0, "s4": 4, "u4": 4, "c64": 64, "c128": 128}
_ARRAY = re.compile(r"([a-z]+\d*[a-z0-9]*)\[([\d,<=]*)\]")
_BRACKET = re.compile(r"[()]")
_NAME = re.compile(r"%([\w.\-]+)")
_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition|\w+_computation)=%([\w.\-]+)")
_CALLED_LIST = re.compile(r"\b(?:branch_computations|called_computations|calls)=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
# Operations whose computations run on their own. Those of any other are a part of it.
_CALLERS = ("while", "call", "conditional", "async-start")


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array of a program."""

    dtype: str  # XLA's name, such as f32, bf16, pred
    dims: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        return self.size * bits_of(self.dtype) // 8


def bits_of(dtype: str) -> int:
    """Bits of one value: those in the name, as in f32, bf16 and f8e4m3fn, or of _BITS."""
    if dtype in _BITS:
        return _BITS[dtype]
    return int(re.search(r"\d+", dtype)[0])


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program.

    Attributes:
      opcode: such as fusion, all-reduce, custom-call.
      shapes: of its result; several for a tuple.
      operands: names of instructions of the same computation.
      attributes: the rest of the line.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str
    is_root: bool = False

    @property
    def bytes(self) -> int:
        """Of the result."""
        return sum(shape.bytes for shape in self.shapes)

    @property
    def op_name(self) -> str:
        """The operation of the source that it computes, "" if unknown."""
        found = _OP_NAME.search(self.attributes)
        return found[1] if found else ""

    @property
    def called(self) -> list[tuple[str, str]]:
        """(role, computation) of every computation that it names: ("body", "region_3")."""
        names = [(match[1], match[2]) for match in _CALLED.finditer(self.attributes)]
        for match in _CALLED_LIST.finditer(self.attributes):
            names += [("branch", name) for name in _NAME.findall(match[1])]
        return names

    @property
    def trips(self) -> int | None:
        """Iterations of a loop, None if they depend on data."""
        found = _TRIPS.search(self.attributes)
        return int(found[1]) if found else None


@dataclasses.dataclass(frozen=True)
class Program:
    """The computations of a compiled program by name, and the name of the entry."""

    computations: dict[str, dict[str, Instruction]]
    entry: str

    @classmethod
    def parse(cls, text: str) -> "Program":
        """Of `compiled.as_text()`."""
        computations: dict[str, dict[str, Instruction]] = {}
        entry, current = "", None
        for line in text.splitlines():
            if current is not None and line.startswith("  "):
                instruction = _parse_line(line.strip())
                current[instruction.name] = instruction
            elif line.startswith("}"):
                current = None
            elif head := _HEAD.match(line):
                current = computations.setdefault(head[2], {})
                entry = head[2] if head[1] else entry
        return cls(computations, entry)

    def executed(self) -> Iterator[tuple[Instruction, dict[str, Instruction], int | None]]:
        """(instruction, its computation, runs) of everything that runs, in no particular order.

        Runs are None within a loop of unknown length. A fusion counts as one instruction.
        """
        for name, runs in self._runs.items():
            for instruction in self.computations[name].values():
                yield instruction, self.computations[name], runs

    @functools.cached_property
    def _runs(self) -> dict[str, int | None]:
        """How often each executed computation runs."""
        runs: dict[str, int | None] = {}

        def visit(name: str, times: int | None) -> None:
            before = runs.get(name, 0)
            runs[name] = None if before is None or times is None else before + times
            for instruction in self.computations[name].values():
                if instruction.opcode not in _CALLERS:
                    continue
                inside = times
                if instruction.opcode == "while":
                    trips = instruction.trips
                    inside = None if times is None or trips is None else times * trips
                for _, called in instruction.called:
                    visit(called, inside)

        visit(self.entry, 1)
        return runs


def operand_bytes(instruction: Instruction, computation: dict[str, Instruction]) -> int:
    """Bytes of what an instruction reads."""
    return sum(computation[name].bytes for name in instruction.operands if name in computation)


def _parse_line(line: str) -> Instruction:
    """`ROOT %name = f32[2,3]{1,0} opcode(%a, %b), attributes`."""
    is_root, line = line.startswith("ROOT "), line.removeprefix("ROOT ")
    name, _, rest = line.partition(" = ")
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    start = rest.index("(")
    end = _closing(rest, start)
    inside = rest[start + 1 : end - 1]
    shapes = tuple(
        Shape(dtype, tuple(int(size.lstrip("<=")) for size in dims.split(",") if size))
        for dtype, dims in _ARRAY.findall(kind)
    )
    operands = () if rest.startswith("constant") else tuple(_NAME.findall(inside))
    return Instruction(name.removeprefix("%"), rest[:start], shapes, operands, rest[end:], is_root)


def _closing(text: str, start: int) -> int:
    """The position after the bracket that closes the one at `start`."""
    depth = 0
    for match in _BRACKET.finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return match.end()
    raise ValueError(f"no closing bracket in {text[:80]!r}")
