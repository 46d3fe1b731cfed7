"""scripts/test.sh asks for extras by the names that are in the package's metadata."""

import importlib.metadata
import re

from tests.conftest import ROOT


def test_extras_of_the_test_script_exist():
    """pip only warns of an extra that is missing; the slow tests that need it are then skipped."""
    script = (ROOT / "scripts" / "test.sh").read_text()
    wanted = {name for names in re.findall(r"extras=(\S+)", script) for name in names.split(",")}
    assert len(wanted) == 2
    assert wanted <= set(importlib.metadata.metadata("avs_jax").get_all("Provides-Extra"))
