"""One style of flags for every program: --some_flag=value, where --some-flag means the same."""

import argparse
import sys
from collections.abc import Sequence


class FlagParser(argparse.ArgumentParser):
    """argparse with this style, and a description printed as it is written."""

    def __init__(self, **options):
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**options)

    def parse_known_args(self, args=None, namespace=None):
        args = with_underscores(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)


def with_underscores(argv: Sequence[str]) -> list[str]:
    """The arguments with underscores for the hyphens inside the names of flags."""
    return [_with_underscores(arg) for arg in argv]


def _with_underscores(arg: str) -> str:
    if not arg.startswith("--"):
        return arg
    name, equals, value = arg[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"
