"""The kernels of a program compiled for a GPU: what each computes, moves and takes at least.

Everything is read from the program's text; nothing was run. A kernel's time is estimated as

  max(bytes / (MEMORY_EFFICIENCY * bandwidth), FLOPs / (PRODUCT_EFFICIENCY * peak), LEAST_SECONDS)

and the kernels run one after another. Bytes are those of the arrays that a kernel reads and writes
once each: caches do not help, and a slice, a gather or an update in place touches its own part
alone. FLOPs are those of matrix products and convolutions; a multiply-add counts as two.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

from avs_jax.runtime.collectives import KINDS as COLLECTIVES
from avs_jax.runtime.gpus import Gpu
from avs_jax.runtime.hlo import Instruction, Program

MEMORY_EFFICIENCY = 0.8  # of the bandwidth that a good kernel reaches
PRODUCT_EFFICIENCY = 0.6  # of the peak that products of some hundred rows reach
LEAST_SECONDS = 3e-6  # of a kernel, however small

NOTABLE_SHARE = 0.01  # of all bytes, from which on a kernel that computes nothing is listed

# Classes in the order in which an operation of a fusion decides.
PRODUCTS, CONVOLUTIONS = "matrix products", "convolutions"
SCATTERS, GATHERS, TRANSPOSES, CONVERTS = "scatters", "gathers", "transposes", "converts"
CLASSES = {
    PRODUCTS: {"dot"},
    CONVOLUTIONS: {"convolution"},
    "collectives": set(COLLECTIVES),
    SCATTERS: {"scatter", "select-and-scatter"},
    GATHERS: {"gather"},
    "sorts": {"sort", "topk"},
    "reductions": {"reduce", "reduce-window"},
    TRANSPOSES: {"transpose"},
}
MOVERS = (TRANSPOSES, CONVERTS, GATHERS, SCATTERS)
OTHERS, COPIES, LIBRARY = "elementwise", "copies", "other library calls"
_CONVERTING = {"parameter", "convert", "bitcast", "tuple", "constant", "broadcast", "reshape"}
_COPYING = {"parameter", "copy", "bitcast", "tuple", "constant", "dynamic-slice", "slice"}
_COPYING |= {"dynamic-update-slice", "concatenate", "pad", "broadcast"}
_FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "call"}
_FREE |= {"conditional", "after-all", "partition-id", "replica-id", "opt-barrier", "async-start"}
_PARTIAL = ("dynamic-slice", "slice", "gather")
_IN_PLACE = ("dynamic-update-slice", "scatter")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One operation that the GPU runs.

    Attributes:
      kind: a class of kernels.
      flops, bytes: of one run.
      dtype: of the factors of a product, as XLA names it; "" otherwise.
      runs: per step; None in a loop whose length depends on data.
      op_name: what it computes, as in JAX's source.
    """

    name: str
    kind: str
    flops: int
    bytes: int
    dtype: str
    runs: int | None
    op_name: str

    @property
    def times(self) -> int:
        """Runs that count: those of a loop of unknown length count once."""
        return 1 if self.runs is None else self.runs

    def roofline(self, gpu: Gpu, memory: float = 1.0, products: float = 1.0) -> float:
        """Seconds of one run at fractions of the peaks of the memory and of the products."""
        moving = self.bytes / (memory * gpu.bandwidth)
        return max(moving, self.flops / (products * gpu.peak(self.dtype)) if self.flops else 0.0)

    def seconds(self, gpu: Gpu) -> float:
        """The estimate of all runs."""
        one = self.roofline(gpu, MEMORY_EFFICIENCY, PRODUCT_EFFICIENCY)
        return self.times * max(one, LEAST_SECONDS)


def find_kernels(program: Program) -> list[Kernel]:
    """The kernels of a program."""
    found = []
    for instruction, computation, runs in program.executed():
        opcode = instruction.opcode
        if opcode in _FREE or opcode.endswith(("-done", "-update")):
            continue
        body = _body(program, instruction)
        flops, dtype = _flops(instruction, computation, body)
        found.append(
            Kernel(
                name=instruction.name,
                kind=_classify(instruction, body),
                flops=flops,
                bytes=_moved(instruction, computation, body),
                dtype=dtype,
                runs=runs,
                op_name=instruction.op_name,
            )
        )
    return found


def _body(program: Program, instruction: Instruction) -> Mapping[str, Instruction] | None:
    """The operations of a fusion, which may run beside others (`fusion-start`)."""
    if instruction.opcode.removesuffix("-start") != "fusion":
        return None
    return program.computations[dict(instruction.called)["calls"]]


def _classify(instruction: Instruction, body: Mapping[str, Instruction] | None) -> str:
    if instruction.opcode == "custom-call":
        target = instruction.attributes
        for text, kind in (("gemm", PRODUCTS), ("matmul", PRODUCTS), ("$conv", CONVOLUTIONS)):
            if re.search(rf'custom_call_target="[^"]*{re.escape(text)}', target):
                return kind
        return "sorts" if re.search(r'target="[^"]*(?i:topk|sort)', target) else LIBRARY
    if body is None:
        opcodes = {instruction.opcode.removesuffix("-start")}
    else:  # scalars are indices of slices and counters of loops
        opcodes = {x.opcode for x in body.values() if any(shape.dims for shape in x.shapes)}
    for kind, deciding in CLASSES.items():
        if opcodes & deciding:
            return kind
    if "convert" in opcodes and opcodes <= _CONVERTING:
        return CONVERTS
    if opcodes <= _COPYING:
        return COPIES
    return OTHERS


# ---- bytes ----


def _moved(
    instruction: Instruction,
    computation: Mapping[str, Instruction],
    body: Mapping[str, Instruction] | None,
) -> int:
    """Bytes read and written by one run."""
    if body is None:  # one operation is a fusion of itself
        body = {name: computation[name] for name in instruction.operands if name in computation}
        body = {name: dataclasses.replace(x, operands=()) for name, x in body.items()}
        body[instruction.name] = root = instruction
        inputs = set(body) - {instruction.name}
    else:
        root = next(part for part in body.values() if part.is_root)
        inputs = {part.name for part in body.values() if part.opcode == "parameter"}
    return sum(_read(body[name], body) for name in inputs) + _written(root, body)


def _read(value: Instruction, body: Mapping[str, Instruction]) -> int:
    """Bytes of a value that its users read."""
    total = 0
    for user in body.values():
        if value.name not in user.operands:
            continue
        is_first = user.operands[0] == value.name
        if user.opcode == "bitcast":
            total += _read(user, body)
        elif user.opcode in _PARTIAL and is_first:
            total += user.bytes
        elif not (user.opcode in _IN_PLACE and is_first):
            return value.bytes
    return min(total, value.bytes)


def _written(root: Instruction, body: Mapping[str, Instruction]) -> int:
    """Bytes of a result; an update in place writes its part, a scatter reads it first."""
    if root.opcode in ("tuple", "bitcast"):
        return sum(_written(body[name], body) for name in root.operands if name in body)
    if root.opcode == "dynamic-update-slice":
        return body[root.operands[1]].bytes
    if root.opcode == "scatter":
        return 2 * body[root.operands[2]].bytes
    if root.opcode == "custom-call":  # the workspace of a library is no result
        return sum(shape.bytes for shape in root.shapes if shape.dtype != "s8")
    return root.bytes


# ---- FLOPs ----


def _flops(
    instruction: Instruction,
    computation: Mapping[str, Instruction],
    body: Mapping[str, Instruction] | None,
) -> tuple[int, str]:
    """(FLOPs of the products of one run, dtype of their factors)."""
    inside, around = ([instruction], computation) if body is None else (body.values(), body)
    total, dtype = 0, ""
    for part in inside:
        if part.opcode == "dot" or _classify(part, None) == PRODUCTS:
            total, dtype = total + _product_flops(part, around), _factor_dtype(part, around)
        elif part.opcode == "convolution" or _classify(part, None) == CONVOLUTIONS:
            total, dtype = total + _convolution_flops(part, around), _factor_dtype(part, around)
    return total, dtype


def _factor_dtype(part: Instruction, around: Mapping[str, Instruction]) -> str:
    """Of the factors; with the suffix "!" where float32 must not be rounded to TF32."""
    dtype = around[part.operands[0]].shapes[0].dtype
    precision = re.search(r'operand_precision"?[=:][{\[]"?(\w+)', part.attributes)
    is_exact = dtype == "f32" and precision is not None and precision[1].lower() == "highest"
    return dtype + ("!" if is_exact else "")


def _product_flops(part: Instruction, around: Mapping[str, Instruction]) -> int:
    factor = around[part.operands[0]].shapes[0].dims
    contracted = re.search(r'lhs_contracting_dim\w*"?[:=][\[{]([\d",]*)[\]}]', part.attributes)
    axes = [int(axis) for axis in re.findall(r"\d+", contracted[1])]
    return 2 * part.shapes[0].size * math.prod(factor[axis] for axis in axes)


def _convolution_flops(part: Instruction, around: Mapping[str, Instruction]) -> int:
    """2 * values of the convolution's result * factors of each, forward and for both gradients."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", part.attributes)
    first, second = (around[name].shapes[0] for name in part.operands[:2])
    result = part.shapes[0]
    if "BackwardInput" in part.attributes:
        output, kernel = first, second
    elif "BackwardFilter" in part.attributes:
        output, kernel = second, result
    else:
        output, kernel = result, second
    return 2 * output.size * kernel.size // kernel.dims[labels[2].index("o")]


# ---- report ----


def describe_kernels(kernels: Sequence[Kernel], gpu: Gpu) -> str:
    """A table by class, what moves bytes without computing, and the estimated time of the step."""
    header = f"{'kernels of the step':<20} {'number':>7} {'runs':>8} {'TFLOP':>9} {'GB moved':>9}"
    lines = [f"{header} {'roofline ms':>12} {'estimate ms':>12}"]
    by_kind: dict[str, list[Kernel]] = {}
    for kernel in kernels:
        by_kind.setdefault(kernel.kind, []).append(kernel)
    by_time = sorted(by_kind.items(), key=lambda item: -sum(k.seconds(gpu) for k in item[1]))
    for kind, group in [*by_time, ("all", list(kernels))]:
        flops, moved = (sum(k.times * getattr(k, n) for k in group) for n in ("flops", "bytes"))
        roofline = sum(k.times * k.roofline(gpu) for k in group)
        seconds = sum(k.seconds(gpu) for k in group)
        lines.append(
            f"{kind:<20} {len(group):>7,} {sum(k.times for k in group):>8,} {flops / 1e12:>9.3f} "
            f"{moved / 1e9:>9.2f} {1e3 * roofline:>12.2f} {1e3 * seconds:>12.2f}"
        )
    lines += _notable(kernels)
    num_unknown = sum(k.runs is None for k in kernels)
    total = sum(k.seconds(gpu) for k in kernels)
    lines += [
        f"estimated time of a step on one {gpu.title}: {total:.3f} s, not measured",
        f"  assumed: {MEMORY_EFFICIENCY:.0%} of {gpu.bandwidth / 1e12:.2f} TB/s, "
        f"{PRODUCT_EFFICIENCY:.0%} of {gpu.tensor / 1e12:.0f} TFLOP/s in bfloat16 (half in "
        f"float32), {1e6 * LEAST_SECONDS:.0f} us per kernel at least, one after another,",
        f"  {num_unknown} kernels in loops whose length depends on data run once, no waiting for "
        "data or other devices",
    ]
    return "\n".join(lines)


def _notable(kernels: Sequence[Kernel]) -> list[str]:
    """Lines on the largest kernels that only move what others computed."""
    whole = sum(k.times * k.bytes for k in kernels)
    lines = [f"transposes, converts, gathers and scatters over {NOTABLE_SHARE:.0%} of the bytes:"]
    for kernel in sorted(kernels, key=lambda k: -k.times * k.bytes):
        moved = kernel.times * kernel.bytes
        if kernel.kind in MOVERS and moved > NOTABLE_SHARE * whole:
            lines.append(
                f"  {moved / whole:>5.1%} {moved / 1e9:>7.2f} GB  {kernel.kind}, {kernel.times} "
                f"run(s): {kernel.op_name or kernel.name}"
            )
    return lines if len(lines) > 1 else [f"{lines[0]} none"]
