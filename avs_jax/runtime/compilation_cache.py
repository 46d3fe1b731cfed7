"""Where programs keep what XLA compiled for them, and find it at their next start."""

import os
import pathlib

import jax

MIN_SECONDS = 0.1  # of compilation, that are worth a file


def use_compilation_cache() -> pathlib.Path:
    """Keeps compiled functions in a folder of the user, and finds them there.

    Runs of training have such a folder in their working directory. JAX's own setting, the variable
    JAX_COMPILATION_CACHE_DIR, has precedence. A folder that cannot be written costs a warning, not
    the program.

    Returns:
      The folder: $XDG_CACHE_HOME/avs_jax, or ~/.cache/avs_jax.
    """
    if jax.config.jax_compilation_cache_dir:
        return pathlib.Path(jax.config.jax_compilation_cache_dir)
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = pathlib.Path(base).expanduser() / "avs_jax"
    keep_compiled_in(folder)
    return folder


def keep_compiled_in(folder: pathlib.Path) -> None:
    """Keeps compiled functions in a folder, as a run of training does in its working directory."""
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_SECONDS)
