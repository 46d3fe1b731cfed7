"""The persistent compilation cache: what XLA compiled is found again at the next start."""

import os
import pathlib

import jax

MIN_SECONDS = 0.1  # of compilation that are worth a file


def use_compilation_cache() -> pathlib.Path:
    """Enables a cache in $XDG_CACHE_HOME/avs_jax, or ~/.cache/avs_jax, and returns the folder.

    A training run has a cache in its working directory instead. JAX's own setting, the variable
    JAX_COMPILATION_CACHE_DIR, takes precedence. A directory that cannot be written to costs a
    warning, not the program.
    """
    if jax.config.jax_compilation_cache_dir:
        return pathlib.Path(jax.config.jax_compilation_cache_dir)
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    directory = pathlib.Path(base).expanduser() / "avs_jax"
    enable_compilation_cache(directory)
    return directory


def enable_compilation_cache(directory: pathlib.Path) -> None:
    """Enables a cache in a directory."""
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_SECONDS)
