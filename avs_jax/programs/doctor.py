"""What this installation can do, and whether it computes the right numbers.

  avs-jax doctor

Prints versions, devices and their memory, XLA's flags, FFmpeg's codecs, CUDA and the optional
extras. Then it runs the smallest model (s4_ama:tiny, with parameters and inputs drawn here) and
compares its outputs with stored numbers. The exit status is 1 if something is wrong; --skip_model
leaves the model out, which takes most of the time.
"""

import importlib.metadata
import os
import pathlib
import platform
import re
import shutil
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import av
import jax
import numpy as np

from avs_jax import xla_flags
from avs_jax.flag_style import FlagParser
from avs_jax.runtime.command_line import parse
from avs_jax.runtime.compilation_cache import use_compilation_cache
from avs_jax.runtime.evaluation import apply_model
from avs_jax.runtime.memory import GIB
from avs_jax.runtime.step import init_variables
from avs_jax.spec import first_line
from avs_jax.task import stack_rows
from avs_jax.tasks import make_task

DISTRIBUTION = "avs_jax"
LIBRARIES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "tensorflow-datasets",
)
TESTED_JAX = ("0.10", "0.12")  # oldest and newest series that the tests have run on
CODECS = {"r": ("h264", "hevc", "vp9", "av1", "aac", "opus"), "w": ("libx264", "aac")}
DRIVER = pathlib.Path("/proc/driver/nvidia/version")
PROBES = 6  # numbers per output that are compared
TOLERANCE = {
    "cpu": 1e-3,
    "gpu": 5e-2,
    "tpu": 5e-2,
}  # of numbers up to 5; accelerators round products
EXPECTED = {  # by jax 0.10.2 on a CPU
    "motion_weight": (0.46535, 0.56084, 0.58305, 0.48545, 0.66477, 0.43927),
    "pred_logits": (1.7743, 1.88571, 1.73043, 1.71322, 1.84626, 1.84281),
    "pred_masks": (0.30276, 0.97293, 0.46934, 1.3454, -1.43775, -0.12986),
}


class Findings:
    """Prints what is found as it is found, and keeps what is wrong."""

    def __init__(self):
        self.problems: list[str] = []

    def say(self, name: str, value: Any) -> None:
        print(f"{name:<14} {value}", flush=True)

    def problem(self, text: str) -> None:
        self.problems.append(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Examines the installation; returns the exit status."""
    parser = FlagParser(prog="avs-jax doctor", description=__doc__)
    parser.add_argument("--skip_model", action="store_true", help="only look, compute nothing")
    args = parser.parse_args(argv)
    found = Findings()
    check_versions(found)
    has_devices = check_devices(found)
    check_ffmpeg(found)
    check_cuda(found, has_devices)
    for name, packages in extras().items():
        missing = [package for package in packages if version(package) is None]
        how = f"no ({', '.join(missing)}): pip install '{DISTRIBUTION}[{name}]'"
        found.say(f"extra {name}", how if missing else "yes")
    if has_devices and not args.skip_model:
        check_model(found)
    for problem in found.problems:
        print(f"problem: {problem}")
    print("something is wrong" if found.problems else "all is well")
    return int(bool(found.problems))


def check_versions(found: Findings) -> None:
    python = f"{platform.python_version()}, {platform.platform()}"
    found.say("avs_jax", version(DISTRIBUTION) or "not installed: pip install . (or -e .)")
    found.say("python", python)
    found.say("libraries", ", ".join(f"{name} {version(name) or 'missing'}" for name in LIBRARIES))
    oldest, newest = (tuple(map(int, text.split("."))) for text in TESTED_JAX)
    if not oldest <= tuple(map(int, jax.__version__.split(".")[:2])) <= newest:
        tested = " to ".join(TESTED_JAX)
        found.say("", f"jax {jax.__version__} is outside of what was tested, {tested}")


def check_devices(found: Findings) -> bool:
    """Whether there are devices."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
    found.say("machine", f"{os.cpu_count()} cores, {memory:.1f} GiB of memory")
    try:
        devices = jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # the second where no platform is there
        found.problem(f"jax finds no device: {first_line(error)}")
        return False
    for device in devices:
        limit = (device.memory_stats() or {}).get("bytes_limit")
        size = "" if limit is None else f", {limit / GIB:.1f} GiB for arrays"
        found.say("device", f"{device.id}: {device.device_kind} ({device.platform}){size}")
    found.say("XLA_FLAGS", os.environ.get("XLA_FLAGS") or "none")
    found.say("", xla_flags.describe())
    cache = use_compilation_cache()
    free = shutil.disk_usage(next(x for x in (cache, *cache.parents) if x.is_dir())).free / GIB
    found.say("compiled", f"programs are cached in {cache}, {free:.1f} GiB free")
    return True


def check_ffmpeg(found: Findings) -> None:
    kinds = {"r": "reads", "w": "writes"}
    for mode, names in CODECS.items():
        missing = [name for name in names if not _has_codec(name, mode)]
        there = ", ".join(name for name in names if name not in missing)
        found.say("ffmpeg", f"PyAV {av.__version__} {kinds[mode]} {there}")
        if missing:
            found.problem(f"FFmpeg's libraries lack {', '.join(missing)}: reinstall av with pip")


def _has_codec(name: str, mode: str) -> bool:
    try:
        av.Codec(name, mode)
    except ValueError:  # av.codec.UnknownCodecError is one
        return False
    return True


def check_cuda(found: Findings, has_devices: bool) -> None:
    plugins = [f"jax-cuda{number}-plugin" for number in (12, 13)]
    plugin = ", ".join(f"{name} {version(name)}" for name in plugins if version(name)) or None
    has_driver = DRIVER.is_file()
    driver = DRIVER.read_text().splitlines()[0] if has_driver else "no NVIDIA driver"
    found.say("CUDA", f"{driver}; {plugin or 'no plugin of jax'}")
    if has_driver and plugin is None:
        found.problem(f"there is a GPU that jax cannot use: pip install '{DISTRIBUTION}[cuda]'")
    elif has_driver and has_devices and jax.default_backend() != "gpu":
        found.problem(f"jax runs on {jax.default_backend()} although there is a GPU")


def extras() -> dict[str, list[str]]:
    """Extra -> the packages it adds, from the installed package's metadata."""
    try:
        requirements = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    result: dict[str, list[str]] = {}
    for text in requirements:
        extra = re.search(r"""extra == ["']([\w-]+)["']""", text)
        if extra:
            package = re.match(r"[\w.-]+", text)[0]
            result.setdefault(extra[1], []).append(
                "jax-cuda13-plugin" if package == "jax" else package
            )
    return result


def version(distribution: str) -> str | None:
    """The installed version, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


# ---- the model ----


def check_model(found: Findings) -> None:
    """Compares the outputs of the smallest model with EXPECTED."""
    print("compiling the smallest model: up to two minutes the first time", file=sys.stderr)
    start = time.monotonic()
    outputs = probe_model()
    seconds = time.monotonic() - start
    tolerance = TOLERANCE.get(jax.default_backend(), max(TOLERANCE.values()))
    worst = 0.0
    for name, expected in EXPECTED.items():
        values = outputs[name]
        difference = float(np.abs(np.subtract(values, expected)).max())
        worst = max(worst, difference)
        if not difference <= tolerance:  # NaN is not
            found.problem(
                f"{name} of the smallest model is {values}, stored {list(expected)}: this "
                "combination of jax and device computes wrong numbers"
            )
    found.say("model", f"largest difference {worst:.1e} of stored numbers, {seconds:.0f} s")


def probe_model() -> dict[str, list[float]]:
    """A few numbers of each output of s4_ama:tiny, on drawn parameters and inputs."""
    line = parse(["doctor", "--config=s4_ama:tiny"], lambda values: None, __doc__)
    task = make_task(line.config)
    inputs = task.inputs(stack_rows([task.rows.empty(train=False)], task.rows.fields))
    shapes = jax.eval_shape(lambda: init_variables(task.model, inputs, 0))
    inputs = {name: _drawn_input(name, value) for name, value in inputs.items()}
    params, batch_stats = (
        jax.tree_util.tree_map_with_path(lambda path, leaf: _drawn_parameter(path, leaf), tree)
        for tree in shapes
    )
    outputs = jax.jit(lambda *variables: apply_model(task, *variables, inputs))(params, batch_stats)
    return {name: list(_probes(np.asarray(value, np.float32))) for name, value in outputs.items()}


def _random(name: str) -> np.random.RandomState:
    """The legacy generator: its numbers are the same in every version of numpy."""
    return np.random.RandomState(zlib.crc32(name.encode()))


def _drawn_input(name: str, value: np.ndarray) -> np.ndarray:
    random = _random(name)
    if value.dtype == bool:
        return np.ones(value.shape, bool)
    if value.dtype == np.uint8:
        return random.randint(0, 256, value.shape).astype(np.uint8)
    return random.uniform(-1, 1, value.shape).astype(value.dtype)


def _drawn_parameter(path: Sequence[Any], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    name = "/".join(str(key.key) for key in path)
    random = _random(name).standard_normal(leaf.shape)
    if path[-1].key in ("scale", "var"):
        drawn = 1 + 0.1 * np.abs(random)
    elif len(leaf.shape) < 2:
        drawn = 0.1 * random
    else:
        drawn = random / np.sqrt(np.prod(leaf.shape[:-1]))
    return drawn.astype(leaf.dtype)


def _probes(values: np.ndarray) -> Iterator[float]:
    flat = values.ravel()
    for index in range(0, flat.size, max(1, flat.size // PROBES)):
        yield round(float(flat[index]), 5)


if __name__ == "__main__":
    sys.exit(main())
