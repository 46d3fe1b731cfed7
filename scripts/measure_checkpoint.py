"""Time of saving and restoring a checkpoint, and the share that its checksums take.

  python scripts/measure_checkpoint.py --output=DIR [--gib=1] [--repeats=3]

Saves and restores random parameters of that size under DIR, which must not exist, with the code of
a training run. Prints the shortest of the repeats; files may still be in the system's cache. The
share of a save is the time of the checksums, during which training waits, over the whole save.
"""

import pathlib
import shutil
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from avs_jax.flag_style import FlagParser  # noqa: E402
from avs_jax.runtime.checksums import tree_checksums  # noqa: E402
from avs_jax.runtime.run_checkpoints import Checkpoints  # noqa: E402
from avs_jax.runtime.step import TrainState  # noqa: E402
from configs.segment import segment_config  # noqa: E402

WIDTH = 1024  # of a square parameter: 4 MiB


def main(argv: list[str] | None = None) -> int:
    """Measures and prints; returns the exit status."""
    parser = FlagParser(description=__doc__)
    parser.add_argument("--output", required=True, help="scratch folder")
    parser.add_argument("--gib", type=float, default=1.0, help="size of the state (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="of each (%(default)s)")
    args = parser.parse_args(argv)
    output = pathlib.Path(args.output).expanduser().resolve()
    if output.exists():
        parser.error(f"{output} exists; name another --output")
    state = random_state(max(1, round(args.gib * 2**30 / (4 * WIDTH**2))))
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    checkpoints, step = Checkpoints(output, segment_config()), iter(range(args.repeats))

    def save() -> None:
        checkpoints.save(state, next(step))
        checkpoints.wait()

    try:
        sums = shortest(lambda: tree_checksums(state.params), args.repeats)
        saving = shortest(save, args.repeats)
        restoring = shortest(lambda: checkpoints.restore(target), args.repeats)
    finally:
        checkpoints.close()
        shutil.rmtree(output, ignore_errors=True)
    print(f"state of {args.gib:g} GiB: checksums {sums:.3f} s")
    print(f"save    {saving:.2f} s, {100 * sums / saving:.1f} % of it for checksums")
    print(f"restore {restoring:.2f} s, {100 * sums / restoring:.1f} % of it for checksums")
    return 0


def random_state(count: int) -> TrainState:
    """A state of `count` square parameters."""
    rng = np.random.default_rng(0)
    params = {
        f"layer_{i}": {"kernel": jnp.asarray(rng.standard_normal((WIDTH, WIDTH), np.float32))}
        for i in range(count)
    }
    return TrainState(jnp.zeros((), jnp.int32), params, {}, {})


def shortest(action: Callable[[], object], repeats: int) -> float:
    """Seconds."""
    seconds = []
    for _ in range(repeats):
        begun = time.monotonic()
        action()
        seconds.append(time.monotonic() - begun)
    return min(seconds)


if __name__ == "__main__":
    sys.exit(main())
