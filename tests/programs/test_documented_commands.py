"""Every command of the README, docs, notebooks and --help texts is one that its program accepts.

The commands are parsed by the programs' own parsers, and not run.
"""

import argparse
import ast
import importlib
import inspect
import json
import pathlib
import re
import shlex
from typing import NamedTuple

import pytest

from avs_jax.cli import COMMANDS
from avs_jax.generate.datasets import SETTINGS
from avs_jax.runtime import command_line
from avs_jax.spec import InputError
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
PASS_FLAGS_ON = ("scripts.ablate", "scripts.study_alignment", "scripts.check_resume")
START = (
    r"(?:srun )?(?:avs-jax|python -m avs_jax\.\w+|(?:python )?scripts/\w+\.py) --|avs-jax [a-z]+ "
)
FILE = r"(?:avs_jax|configs|docs|scripts|tests|tfds_builders)/[\w/]+\.\w+"

EXAMPLES = {"avs_jax/models/fusion/gain.py", "configs/NAME.py", "scripts/demos/KIND.sh"}  # to write


class Parsed(BaseException):
    """A command line was accepted; args: the flags that the program passes on."""


class Command(NamedTuple):
    """A documented command; one in a sentence need not be whole."""

    text: str
    place: str
    is_whole: bool


def commands_in(text, place):
    """Indented commands with their continuation lines, and those in backticks."""
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    for i, line in enumerate(lines):
        found = re.match(rf"( {{2,}}|avs_jax\(f?\")(?={START})", line)
        if not found:
            continue
        parts, further_in = [line.strip()], " " * (len(found[1]) + 2)
        for more in lines[i + 1 :]:  # in a docstring, without a backslash
            if not re.match(rf"{further_in} *(\[?--|=DIR)", more):
                break
            parts.append(more.strip())
        yield Command(" ".join(parts), place, True)
    for quoted in re.findall(r"`([^`]+)`", text):
        if re.match(START, quoted):
            yield Command(" ".join(quoted.split()), place, False)


def documented():
    for path in PAGES:
        yield from commands_in(path.read_text(), path.name)
    programs = {importlib.import_module(row.module).__file__ for row in COMMANDS.values()}
    for path in [*map(pathlib.Path, sorted(programs)), *SCRIPTS]:
        text = ast.get_docstring(ast.parse(path.read_text()))
        yield from commands_in(text or "", path.name)
    for path in NOTEBOOKS:
        for cell in json.loads(path.read_text())["cells"]:
            yield from commands_in("".join(cell["source"]), path.name)
    for name, setting in SETTINGS.items():
        yield Command(f"avs-jax clips {setting.example}", f"clips --help, {name}", True)


def words_of(text):
    """The words of a command, with its [optional] parts and the first one of a|b."""
    text = re.sub(r"\s#.*", "", text).removeprefix("srun ")
    text = re.sub(r"\[(--[^\]|]*?)(?: \|[^\]]*)?\](?= |$)", r"\1", text)
    words = [word for word in shlex.split(text.rstrip("&; ")) if not word.endswith("...")]
    return [word.split("|")[0] for word in words]


def program_of(words):
    """(module, its flags, those that come before them)."""
    if words[0] == "avs-jax":
        size = 2 if " ".join(words[1:3]) in COMMANDS else 1
        row = COMMANDS[" ".join(words[1 : 1 + size])]
        return importlib.import_module(row.module), words[1 + size :], list(row.before)
    if words[0] == "python":
        words = words[2 if words[1] == "-m" else 1 :]
    module = importlib.import_module(words[0].removesuffix(".py").replace("/", "."))
    argument = next(iter(inspect.signature(module.main).parameters.values()))
    takes_name = argument.default is inspect.Parameter.empty
    return module, words[1:], words[:1] * takes_name


@pytest.fixture
def accept(monkeypatch):
    """A function of a command: what its program passes on; programs stop once they parsed it."""
    depth, real = [], argparse.ArgumentParser.parse_known_args

    def parse_known_args(self, args=None, namespace=None):
        depth.append(self)
        try:
            found = real(self, args, namespace)
        finally:
            depth.pop()
        if depth:
            return found
        raise Parsed(found[1])

    def parse(*args, **options):
        command_line.parse(*args, **options)
        raise Parsed([])

    def accept(words):
        module, flags, before = program_of(words)
        if hasattr(module, "parse"):
            monkeypatch.setattr(module, "parse", parse)
        try:
            status = module.main([*before, *flags])
        except Parsed as parsed:
            passed_on = parsed.args[0]
            may_pass = module.__name__ in PASS_FLAGS_ON
            wrong = [x for x in passed_on if not (may_pass and x.startswith("--config"))]
            return f"unknown {wrong}" if wrong else ""
        except (SystemExit, InputError) as error:
            status = error
        return f"refused: {status}"

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse_known_args)
    return accept


def test_every_documented_command_is_accepted(accept, capsys):
    problems = []
    commands = list(documented())
    for command in commands:
        problem = accept(words_of(command.text))
        said = capsys.readouterr().err
        is_part = not command.is_whole and re.search("is missing|are required", said)
        if problem and not is_part:
            problems.append(f"{command.place}: {command.text}\n  {problem} {said[-300:]}")
    assert not problems, "\n".join(problems)
    assert len(commands) > 150


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_named_file_exists(path):
    named = set(re.findall(rf"`({FILE})`", path.read_text())) - EXAMPLES
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
