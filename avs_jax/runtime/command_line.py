"""Command lines: --config=FILE.py[:variant], --config.any.key=value, and each program's own flags.

A --config that is no file is looked up among the recipes that come with the package, by path
(configs/s4_ama.py) or by name (s4_ama). Flags belong to a call, not to the process, so a `main` can
be called repeatedly.
"""

import ast
import importlib.util
import pathlib
import re
import sys
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags, logging
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict, config_flags

from avs_jax import xla_flags
from avs_jax.flag_style import with_underscores
from avs_jax.runtime.checkpoint import Checkpoint
from avs_jax.runtime.stored_config import RENAMED_KEYS, changes_a_number
from avs_jax.spec import InputError, UsageError, nearest
from avs_jax.stopping import stop_status

_PACKAGE = pathlib.Path(__file__).resolve().parent.parent
# The recipes: inside the installed package, or beside the package in a checkout.
CONFIGS = next((x for x in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if x.is_dir()), None)
# Keys of config.data that say where and how records are read, not what the model expects. A report
# names its dataset.
FREE_DATA_KEYS = (
    r"data\.(dataset|data_dir|num_workers|prefetch)",
    r"data\.motion\.(model|pairs)",
    r"data\.track\.model",
)


class CommandLine(NamedTuple):
    """A parsed command line."""

    config: ConfigDict | None  # --config with its overrides, locked; None without --config
    values: flags.FlagValues  # the program's own flags
    overrides: Sequence[str]  # the arguments --config.any.key=value

    @property
    def overridden(self) -> set[str]:
        """Dotted keys of the overrides."""
        return {_key(_with_new_name(arg)) for arg in self.overrides}


def parse(
    argv: Sequence[str],
    define: Callable[[flags.FlagValues], None],
    description: str,
    required: Sequence[str] = (),
    needs_config: bool = True,
    more_help: Callable[[CommandLine], str] | None = None,
) -> CommandLine:
    """Parses a command line.

    Args:
      argv: program name first, as sys.argv.
      define: registers the program's own flags.
      description: printed by --help.
      required: own flags that must have a value.
      more_help: what --help adds for the other arguments.

    Raises:
      UsageError: unknown flag, key, file or variant, or a value of the wrong type; names the
        nearest choices.
    """
    quiet_libraries()
    xla_flags.announce()
    argv = [_with_config_file(arg) for arg in with_underscores(argv)]
    find_configs()
    own = [arg for arg in argv if not arg.startswith(("--config.", "-config."))]
    overrides = [arg for arg in argv if arg not in own]
    values, config = _parse_own(own, define)
    if values.help:
        print(description, describe_flags(values), sep="\n")
    else:
        needed = ("config", *required) if needs_config else required
        missing = [name for name in needed if getattr(values, name) is None]
        if missing:
            raise UsageError(f"--{missing[0]} is missing; --help lists the flags")
    if config is not None:
        config = override(config, overrides)
    line = CommandLine(config, values, overrides)
    if values.help:
        if more_help is not None:
            print(more_help(line), end="")
        raise SystemExit(0)
    return line


def exit_status(program: Callable[[], None]) -> int:
    """Runs a program; 0, or after an error 1 with one line on stderr, or 130 after Ctrl-C."""
    try:
        program()
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        line, status = stop_status(error)
        print(line, file=sys.stderr)
        return status
    return 0


def checkpoint_config(line: CommandLine, checkpoint: Checkpoint) -> tuple[ConfigDict, list[str]]:
    """The configuration for using a checkpoint.

    Every key that changes a number comes from the checkpoint, but for the dataset. The rest comes
    from --config, if given, else also from the checkpoint. Overrides on the command line win over
    both.

    Returns:
      the configuration; and one sentence per override that differs from the checkpoint and per
      unused value of the --config file.
    """
    stored = checkpoint.config
    if "model" not in stored or "data" not in stored:
        name = stored.get("name", "something without a name")
        raise InputError(f"{checkpoint.directory} holds {name}, not a whole model")
    base, notes = _with_tuples(stored), []
    trained = _leaves_of(base)
    if line.config is not None:
        model, base = base.model, _with_tuples(line.config)
        given = _leaves_of(line.config)
        for key, value in trained.items():
            if not _belongs_to_checkpoint(key):
                continue
            if key in given and given[key] != value and key not in line.overridden:
                notes.append(f"config.{key} = {value!r} as in the checkpoint, not {given[key]!r}")
            _assign(base, key, value)
        base.model = model
    config = override(base, line.overrides)
    now = _leaves_of(config)
    for key in sorted(line.overridden & now.keys()):
        if _belongs_to_checkpoint(key) and (key not in trained or now[key] != trained[key]):
            was = repr(trained[key]) if key in trained else "without it"
            notes.append(f"config.{key} = {now[key]!r} by the command line, trained {was}")
    return config, notes


def override(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """The configuration with --config.any.key=value applied, locked.

    The keys of a part exist only if the part is chosen. A part chosen on the command line itself
    (--config.model.fusion.name=ama) accepts the keys of its module. Keys of a part that is "none"
    are ignored with a note on stderr.
    """
    overrides = [_with_new_name(arg) for arg in overrides]
    chosen = {_key(arg): arg.partition("=")[2] for arg in overrides if _key(arg).endswith(".name")}
    keys, leaves, kept = _all_keys("", config), _leaves_of(config), []
    for arg in overrides:
        key, name = _key(arg), f"{_key(arg).rpartition('.')[0]}.name"
        if key in keys:
            kept.append(arg)
        elif chosen.get(name, leaves.get(name)) == "none":
            print(f"note: {arg} is not read: config.{name} is 'none'", file=sys.stderr)
        elif name in chosen:
            with config.unlocked():
                _assign(config, key, _literal(arg.partition("=")[2]))
        else:
            known = ", ".join(nearest(key, keys)) or ", ".join(config)
            shown = key if key.isprintable() else ascii(key)
            raise UsageError(f"--config.{shown}: no such key; nearest: {known}")
    values = flags.FlagValues()
    argv = ["", *kept]
    holder = config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    try:
        values(argv)
        return holder.value
    except (flags.Error, ValueError, TypeError) as error:
        raise UsageError(_one_line(error)) from error


def find_configs() -> None:
    """Makes `configs` importable from anywhere, even if the working directory has a `configs`."""
    if "configs" not in sys.modules and CONFIGS is not None:
        package = types.ModuleType("configs")
        package.__path__ = [str(CONFIGS)]
        package.__spec__ = importlib.util.spec_from_loader("configs", None, is_package=True)
        sys.modules["configs"] = package


def describe_flags(values: flags.FlagValues) -> str:
    """For --help, two lines per flag: its name with its default, and what it means."""
    lines = ["flags:"]
    for name in values:
        flag = values[name]
        if name == flag.short_name:
            continue
        shown = f"--[no]{name}" if flag.boolean else f"--{name}"
        default = flag.default_as_str
        lines.append(f"  {shown}" + (f"  (default: {default})" if default else ""))
        lines.append(f"      {flag.help}")
    return "\n".join(lines)


def define_strings(values: flags.FlagValues, texts: Mapping[str, str]) -> None:
    """Defines flags without a default: name -> help text."""
    for name, text in texts.items():
        flags.DEFINE_string(name, None, text, flag_values=values)


def quiet_libraries() -> None:
    """Hides warnings of Orbax and grain that do not concern the user."""
    logging.set_verbosity(logging.ERROR)


def _with_config_file(arg: str) -> str:
    """--config=FILE.py[:variant] with the path of an existing file; other arguments unchanged."""
    if not re.match("--?config=", arg):
        return arg
    value = arg.split("=", 1)[1]
    name, colon, variant = value.partition(":")
    path = pathlib.Path(name).expanduser()
    if not path.is_file() and CONFIGS is not None:
        own = CONFIGS / (name.removeprefix("configs/").removesuffix(".py") + ".py")
        path = own if own.is_file() else path
    if not path.is_file():
        known = ", ".join(nearest(name, _config_files(path))) or "none; configs/ has the recipes"
        raise UsageError(f"--config={value}: {name} is not a file; nearest: {known}")
    if path.suffix != ".py":
        raise UsageError(f"--config={value}: {name} is not a Python file of configs/")
    return f"--config={path}{colon}{variant}"


def _config_files(path: pathlib.Path) -> list[str]:
    """What may be meant by a path that does not exist."""
    own = [] if CONFIGS is None else sorted(CONFIGS.glob("*.py"))
    if path.parent == pathlib.Path():
        return [file.stem for file in own]
    there = sorted(str(file) for file in path.parent.glob("*.py"))
    return there or [f"configs/{file.name}" for file in own]


def _parse_own(argv, define) -> tuple[flags.FlagValues, ConfigDict | None]:
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
        with warnings.catch_warnings():  # ml_collections uses a deprecated way to load the file
            warnings.filterwarnings("ignore", "the load_module", DeprecationWarning)
            rest = values(argv)
        config = holder.value
        if config is not None:
            config.keys()  # a file that failed to load raises only on use
    except SyntaxError as error:
        raise UsageError(f"--config: {error.filename}, line {error.lineno}: {error.msg}") from error
    except (flags.Error, OSError) as error:
        raise UsageError(_one_line(error)) from error
    if len(rest) > 1 and not values.help:
        place = argv.index(rest[1]) if rest[1] in argv else 0
        after = f" after {argv[place - 1]}" if place > 1 else ""
        raise UsageError(f"{rest[1]!r}{after}: not a flag; write --name=value")
    return values, config


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}"


def _key(arg: str) -> str:
    return arg.lstrip("-").removeprefix("config.").split("=")[0]


def _with_new_name(arg: str) -> str:
    """The override with a renamed key under its current name."""
    key = _key(arg)
    return arg.replace(key, RENAMED_KEYS[key], 1) if key in RENAMED_KEYS else arg


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _all_keys(prefix: str, config: Mapping) -> list[str]:
    """All dotted keys, sections included."""
    found = []
    for name, value in config.items():
        found.append(prefix + name)
        if isinstance(value, ConfigDict):
            found += _all_keys(f"{prefix}{name}.", value)
    return found


def _leaves_of(config: ConfigDict) -> dict[str, Any]:
    """Dotted key -> value, without sections."""
    return flatten_dict(config.to_dict(), sep=".")


def _with_tuples(config: ConfigDict) -> ConfigDict:
    """An unlocked copy without references, with tuples for the lists that come from JSON."""

    def convert(value):
        if isinstance(value, Mapping):
            return {name: convert(inner) for name, inner in value.items()}
        return tuple(convert(x) for x in value) if isinstance(value, (list, tuple)) else value

    return ConfigDict(convert(config.copy_and_resolve_references().to_dict()))


def _belongs_to_checkpoint(key: str) -> bool:
    if any(re.fullmatch(rule, key) for rule in FREE_DATA_KEYS):
        return False
    return key.startswith(("model.", "data.")) or key == "name" or changes_a_number(key)


def _assign(config: ConfigDict, key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        if section not in config:
            config[section] = ConfigDict()
        config = config[section]
    with config.ignore_type():
        config[name] = value
