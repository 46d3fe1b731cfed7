"""A bug of XLA's CPU compiler, avoided by a flag before JAX starts.

From jaxlib 0.11.2 on, XLA:CPU hands products to YNNPACK together with the operations around them.
Of a bfloat16 product between two ReLUs (VGGish), the result has NaN. The flag lets YNNPACK take
products alone, at about 5/4 of the time of a training step. XLA reads its flags once, at the first
compilation, and refuses flags that it does not know; so this module is imported with the package,
and only sets the flag for versions that need it.
"""

import functools
import importlib.metadata
import os
import sys

FIRST_FAULTY = (0, 11, 2)
NAME = "--xla_cpu_experimental_ynn_fusion_type"
FLAG = f"{NAME}=individual_dot"


def needs_flag(jaxlib: str, platforms: str) -> bool:
    """Whether programs for the CPU may meet the bug.

    Args:
      jaxlib: its version.
      platforms: JAX_PLATFORMS; empty if JAX chooses.
    """
    numbers = tuple(int(part) for part in jaxlib.split(".")[:3] if part.isdigit())
    return numbers >= FIRST_FAULTY and (not platforms or "cpu" in platforms.split(","))


def avoid_faults() -> bool:
    """Adds the flag to XLA_FLAGS where it is needed; returns whether it did."""
    try:
        jaxlib = importlib.metadata.version("jaxlib")
    except importlib.metadata.PackageNotFoundError:
        return False
    present = os.environ.get("XLA_FLAGS", "")
    if NAME in present or not needs_flag(jaxlib, os.environ.get("JAX_PLATFORMS", "")):
        return False
    os.environ["XLA_FLAGS"] = f"{present} {FLAG}".strip()
    return True


def describe() -> str:
    """One line on the flag: set, not set, or not needed."""
    jaxlib = importlib.metadata.version("jaxlib")
    if not needs_flag(jaxlib, os.environ.get("JAX_PLATFORMS", "")):
        return f"jaxlib {jaxlib} needs no flag"
    state = "is set" if FLAG in os.environ.get("XLA_FLAGS", "") else "is NOT set"
    return f"jaxlib {jaxlib} computes NaN on CPUs without {FLAG}, which {state}"


@functools.cache
def announce() -> None:
    """Says, once, that the flag was added."""
    if WAS_SET_HERE:
        print(f"note: {describe()}", file=sys.stderr)


WAS_SET_HERE = avoid_faults()
