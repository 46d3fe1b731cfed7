"""The one cache of compiled programs: where it is, its size, and keys that survive a move."""

import os
import subprocess
import sys

import jax

from avs_jax.runtime.compilation_cache import remove_oldest, use_compilation_cache
from tests.conftest import ROOT

COMPILE = """
import jax, jax.numpy as jnp
from avs_jax.runtime.compilation_cache import use_compilation_cache
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
print(use_compilation_cache())
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((3, 3)))
print(events.count("/jax/compilation_cache/cache_hits"))
"""


def test_the_cache_of_programs_is_the_users(tmp_path, monkeypatch):
    there = jax.config.jax_compilation_cache_dir
    assert str(use_compilation_cache()) == there  # JAX's own setting has precedence
    seconds = jax.config.jax_persistent_cache_min_compile_time_secs
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        assert use_compilation_cache() == tmp_path / "avs_jax"
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "avs_jax")
    finally:
        jax.config.update("jax_compilation_cache_dir", there)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)


def test_the_longest_unused_programs_are_removed(tmp_path):
    remove_oldest(tmp_path / "none", 10)
    for name, size, used in (("a", 100, 30), ("b", 50, 10), ("c", 70, 40), ("d", 1, 20)):
        path = tmp_path / f"jit_{name}-cache"
        path.write_bytes(b"x" * size)
        os.utime(path, (used, 5))
    (tmp_path / "another_file").write_bytes(b"x" * 500)
    remove_oldest(tmp_path, 221)
    assert len(list(tmp_path.iterdir())) == 5
    remove_oldest(tmp_path, 170)
    assert sorted(path.name[-7] for path in tmp_path.glob("*-cache")) == ["a", "c"]
    remove_oldest(tmp_path, 99)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["another_file", "jit_c-cache"]


def test_programs_are_found_after_the_folder_moved(tmp_path):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}

    def compile_under(base):
        run = subprocess.run(
            [sys.executable, "-c", COMPILE], capture_output=True, text=True, check=True,
            env=kept | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": base},
        )  # fmt: skip
        return run.stdout.split()

    folder, hits = compile_under(str(tmp_path / "old"))
    assert folder == str(tmp_path / "old/avs_jax") and hits == "0"
    (tmp_path / "old").rename(tmp_path / "new")
    folder, hits = compile_under(str(tmp_path / "new"))
    assert folder == str(tmp_path / "new/avs_jax") and int(hits) >= 1
