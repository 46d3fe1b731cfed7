"""Command lines: --config=FILE.py[:variant], --config.any.key=value, and each program's own flags.

Flags belong to one call, not to the process, so that a `main` can be called any number of times.
"""

import pathlib
import re
import sys
import warnings
from collections.abc import Callable, Sequence

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from avs_jax.spec import InputError, nearest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent  # holds configs/


class UsageError(InputError):
    """A command line that asks for something that does not exist; one line, for the user."""


def parse(
    argv: Sequence[str],
    define: Callable[[flags.FlagValues], None],
    description: str,
    required: Sequence[str] = (),
    needs_config: bool = True,
) -> tuple[ConfigDict | None, flags.FlagValues]:
    """Parses a command line.

    Args:
      argv: program name first, as sys.argv.
      define: registers the program's own flags in the FlagValues it is given.
      description: printed by --help.
      required: own flags that must have a value.
      needs_config: whether --config must be there too.

    Returns:
      the configuration, overrides applied and locked, or None where none is given; the flags.

    Raises:
      UsageError: unknown flag, key, file or variant, or a value of another type; names the nearest
        choices.
      SystemExit: --help, after printing it.
    """
    argv = list(argv)
    quiet_libraries()
    _check_config_file(argv)
    if str(ROOT) not in sys.path:  # configuration files import configs.base
        sys.path.append(str(ROOT))
    own = [arg for arg in argv if not arg.startswith(("--config.", "-config."))]
    overrides = [arg for arg in argv if arg not in own]
    values, config = _parse_own(own, define, description)
    needed = ("config", *required) if needs_config else required
    missing = [name for name in needed if getattr(values, name) is None]
    if missing:
        raise UsageError(f"--{missing[0]} is missing; --help lists the flags")
    if config is None:
        if overrides:
            raise UsageError(f"{overrides[0]}: there is no --config to override")
        return None, values
    keys = _leaves("", config)
    for arg in overrides:
        key = arg.lstrip("-").removeprefix("config.").split("=")[0]
        if key not in keys:
            known = ", ".join(nearest(key, keys)) or ", ".join(config)
            raise UsageError(f"--config.{key}: no such key; nearest: {known}")
    # ml_collections reads them in this order only; here any order will do.
    values, config = _parse_own([*own, *overrides], define, description)
    return config, values


def quiet_libraries() -> None:
    """Keeps Orbax's and grain's warnings, which tell a user nothing, from the screen."""
    logging.set_verbosity(logging.ERROR)


def _check_config_file(argv: Sequence[str]) -> None:
    """Raises where --config=FILE names no file, which ml_collections reports in its own terms."""
    for value in (arg.split("=", 1)[1] for arg in argv if re.match("--?config=", arg)):
        path = pathlib.Path(value.split(":")[0])
        if not path.is_file():
            there = sorted(str(p) for p in path.parent.glob("*.py"))
            known = ", ".join(nearest(str(path), there)) or "no .py in that folder"
            raise UsageError(f"--config={value}: {path} is not a file; nearest: {known}")


def _parse_own(argv, define, description) -> tuple[flags.FlagValues, ConfigDict | None]:
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file(
        "config",
        None,
        "FILE.py[:variant]; --config.any.key=value overrides",
        flag_values=values,
        sys_argv=argv,
    )
    flags.DEFINE_bool("help", False, "show this", short_name="h", flag_values=values)
    define(values)
    try:
        with warnings.catch_warnings():  # ml_collections loads the file in a way Python deprecates
            warnings.filterwarnings("ignore", "the load_module", DeprecationWarning)
            rest = values(argv)
        config = holder.value
        if config is not None:
            config.keys()  # a file that could not be loaded says so only when it is used
    except (flags.Error, OSError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}"
        raise UsageError(reason) from error
    if values.help:
        print(description, values.get_help(), sep="\n")
        raise SystemExit(0)
    if len(rest) > 1:
        raise UsageError(f"{rest[1]!r}: not a flag; write --name=value")
    return values, config


def _leaves(prefix: str, config) -> list[str]:
    """Keys of a nested configuration, sections included."""
    found = []
    for name, value in config.items():
        found.append(prefix + name)
        if isinstance(value, ConfigDict):
            found += _leaves(f"{prefix}{name}.", value)
    return found
