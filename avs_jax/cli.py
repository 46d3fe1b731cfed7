"""The console command: avs-jax COMMAND [FLAGS].

  avs-jax train --config=configs/s4_ama.py --workdir=runs/s4_ama
  avs-jax predict --checkpoint=runs/s4_ama --video=clip.mp4 --output=DIR

{commands}

`avs-jax COMMAND --help` describes a command, with an example. --config takes a file, or the name of
a recipe that comes with the package: --config=s4_ama, --config=s4_ama:demo.
"""

import importlib
import importlib.metadata
import sys
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from avs_jax.spec import nearest
from avs_jax.stopping import run_as_program


class Command(NamedTuple):
    """A subcommand.

    Attributes:
      module: has `main(arguments)`; imported only when its command runs.
      before: what goes in front of the user's arguments; programs that read the program's name get
        it here.
      text: for the list of commands.
    """

    module: str
    before: tuple[str, ...]
    text: str


PROGRAMS = "avs_jax.programs"
COMMANDS = {
    "train": Command("avs_jax.main", ("avs-jax train",), "train a configuration, or resume a run"),
    "evaluate": Command(
        "avs_jax.evaluate", ("avs-jax evaluate",), "score a checkpoint, or files of predictions"
    ),
    "predict": Command("avs_jax.predict", ("avs-jax predict",), "own videos, or arrays"),
    "plan": Command("avs_jax.plan", ("avs-jax plan",), "the cost of a training step, beforehand"),
    "flow": Command("avs_jax.flow", (), "optical flow of a dataset's frames"),
    "convert": Command(
        f"{PROGRAMS}.convert_weights",
        ("avs-jax convert",),
        "weights of other programs -> checkpoint",
    ),
    "export": Command(
        f"{PROGRAMS}.export_weights", ("avs-jax export",), "checkpoint -> weights of other programs"
    ),
    "data check": Command(
        f"{PROGRAMS}.prepare_avsbench", ("check",), "what is wrong with a download"
    ),
    "data prepare": Command(
        f"{PROGRAMS}.prepare_avsbench", ("prepare",), "make VCT's 384 px folders"
    ),
    "data build": Command(f"{PROGRAMS}.build_dataset", (), "a dataset's folder -> records"),
    "clips": Command(f"{PROGRAMS}.make_clips", (), "generate clips to try everything on"),
    "doctor": Command(
        f"{PROGRAMS}.doctor", (), "what this installation can do, and if it is right"
    ),
    "app": Command(
        f"{PROGRAMS}.app", ("avs-jax app",), "a page in the browser to try a checkpoint"
    ),
}


def main(argv: Sequence[str] | None = None) -> int | None:
    """Runs a subcommand; returns its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("help", "-h", "--help"):
        print(describe())
        return 0
    if arguments[0] == "--version":
        print(f"avs_jax {importlib.metadata.version('avs_jax')}")
        return 0
    name, rest = arguments[0], arguments[1:]
    group = [command for command in COMMANDS if command.startswith(f"{name} ")]
    if group:
        if not rest or rest[0] in ("-h", "--help"):
            print(describe(group))
            return 0
        name, rest = f"{name} {rest[0]}", rest[1:]
    if name not in COMMANDS:
        near = ", ".join(nearest(name, group or list(COMMANDS)) or group or COMMANDS)
        print(f"error: there is no command {name!r}; nearest: {near}", file=sys.stderr)
        return 1
    command = COMMANDS[name]
    return importlib.import_module(command.module).main([*command.before, *rest])


def run() -> NoReturn:
    """What the console command calls."""
    run_as_program(main)


def describe(names: Sequence[str] | None = None) -> str:
    """The list of commands with what each does; all of them, with a heading, by default."""
    width = max(len(name) for name in COMMANDS)
    lines = [f"  {name:<{width}}  {COMMANDS[name].text}" for name in names or COMMANDS]
    return "\n".join(lines) if names else __doc__.format(commands="\n".join(lines)).rstrip()


if __name__ == "__main__":
    run()
