"""How XLA compiles the programs of this package, where its defaults are not what is wanted."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

# XLA:CPU may hand a matrix product to YNNPACK, and with it the sum or maximum that follows. Some of
# the latter come out as garbage: with jaxlib 0.10.2 and later where the product is with a constant,
# with 0.11.2 and 0.12.0.1 where it lies between two ReLUs in bfloat16, as in VGGish
# (tests/test_compilation.py). Products alone are right.
CPU = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
# XLA:CPU orders operations anew: by default each as early as it can be, so that what the backward
# pass makes again is made, and kept, with the forward pass.
CPU_ORDER = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
# It also takes apart loops of one turn, whose parts then move freely too. Kept whole, each is done
# with its memory before the next begins: a third less of it in a step with recomputation, for a
# twelfth more time.
CPU_WHOLE_LOOPS = {"xla_disable_hlo_passes": "simplify-while-loops"}


def jit(
    function: Callable, cpu: Mapping[str, Any] | None = None, platform: str | None = None, **options
) -> Callable:
    """jax.jit with compiler options that suit the devices.

    Args:
      function: to compile.
      cpu: compiler options for CPUs beside `CPU`.
      platform: of the devices; None: of JAX's default ones.
      options: of jax.jit.
    """
    if (platform or jax.default_backend()) == "cpu":
        options["compiler_options"] = CPU | dict(cpu or {})
    return jax.jit(function, **options)
