"""A wheel and an sdist, installed in empty environments outside of the repository.

pip fetches the dependencies from the package index.
"""

import os
import subprocess
import sys
import venv
import zipfile

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow


def run(*command, cwd, **variables):
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment | variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """What git would check out; building in the repository would leave files there."""
    folder = tmp_path_factory.mktemp("sources")
    names = subprocess.check_output(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, text=True
    )
    for name in names.splitlines():
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def wheel(sources, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", folder, sources, cwd=folder)
    return next(folder.glob("avs_jax-*.whl"))


def contents(path):
    with zipfile.ZipFile(path) as archive:
        return {name for name in archive.namelist() if "dist-info" not in name}


def test_the_wheel_carries_recipes_and_builders(wheel):
    names = contents(wheel)
    recipes = {f"avs_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    builders = {str(p.relative_to(ROOT)) for p in (ROOT / "tfds_builders").rglob("*.py")}
    assert recipes | builders <= names
    assert {name.split("/")[0] for name in names} == {"avs_jax", "tfds_builders"}


def test_the_sdist_makes_the_same_wheel(sources, wheel, tmp_path):
    script = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    python = empty_environment(tmp_path)
    run(python, "-m", "pip", "install", "--quiet", "setuptools>=68", cwd=tmp_path)
    run(python, "-c", script, tmp_path, cwd=sources)
    sdist = next(tmp_path.glob("avs_jax-*.tar.gz"))
    run(python, "-m", "pip", "wheel", "--no-deps", "-w", tmp_path, sdist, cwd=tmp_path)
    assert contents(next(tmp_path.glob("*.whl"))) == contents(wheel)


def test_the_installed_command_works_anywhere(wheel, tmp_path):
    python = empty_environment(tmp_path)
    run(python, "-m", "pip", "install", "--quiet", wheel, cwd=tmp_path)
    command = python.with_name("avs-jax")
    assert "data build" in run(command, cwd=tmp_path)
    assert "all is well" in run(command, "doctor", cwd=tmp_path)
    clips = ["--train=2", "--val=1", "--test=1", "--size=64", "--output=clips"]
    run(command, "clips", *clips, cwd=tmp_path)
    built = ["--dataset=avsbench_s4", "--manual_dir=clips", "--data_dir=tfds"]
    assert "built: test 1, train 2, val 1" in run(command, "data", "build", *built, cwd=tmp_path)
    flags = ["--config=s4_ama:tiny", "--config.data.data_dir=tfds", "--workdir=run"]
    steps = ["--config.train.steps=1", "--config.train.batch_size=1", "--config.train.eval_every=1"]
    run(command, "train", *flags, *steps, cwd=tmp_path)
    assert list((tmp_path / "run" / "evaluation").glob("*/report.html"))


def empty_environment(folder):
    venv.create(folder / "venv", with_pip=True)
    return folder / "venv" / "bin" / "python"
