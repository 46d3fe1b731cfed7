"""Every configuration builds, and model, criterion and optimiser accept it: shapes only, seconds."""

import importlib.util
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
RECIPES = sorted(p.stem for p in (ROOT / "configs").glob("*.py") if p.stem != "base")
VARIANTS = [(name, variant) for name in RECIPES for variant in ("", "demo")]


def load(name: str, variant: str):
    spec = importlib.util.spec_from_file_location(f"configs.{name}", ROOT / f"configs/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant)


@pytest.mark.parametrize("name", RECIPES)
def test_unknown_variant_names_the_choices(name):
    with pytest.raises(ValueError, match="tiny.*demo"):
        load(name, "tiny")


def test_ama_differs_from_vct_in_motion_only():
    ama, vct = load("s4_ama", "").to_dict(), load("s4_vct", "").to_dict()
    assert ama.pop("name") == "s4_ama" and vct.pop("name") == "s4_vct"
    assert ama["data"]["motion"].pop("source") != vct["data"]["motion"].pop("source")
    assert ama["model"]["fusion"].pop("name") != vct["model"]["fusion"].pop("name")
    assert ama == vct
