"""The persistent compilation cache: what XLA compiled is found again at the next start.

All programs of a user share one folder of at most MAX_BYTES. Each start removes what was not used
for the longest time. (JAX's own limit keeps a second file per program; a kill between the two makes
the cache unusable.)
"""

import os
import pathlib
import sys

import jax

MIN_SECONDS = 0.1  # of compilation that are worth a file
MAX_BYTES = 8 << 30  # a training step at full size takes some 100 MB


def use_compilation_cache() -> pathlib.Path:
    """Enables the cache in $XDG_CACHE_HOME/avs_jax, or ~/.cache/avs_jax, and returns the folder.

    JAX's own setting, the variable JAX_COMPILATION_CACHE_DIR, takes precedence; that folder has no
    limit. A directory that cannot be written to costs a warning, not the program.
    """
    # XLA's own caches of GPU kernels would put the folder's path into the key of every program.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    if jax.config.jax_compilation_cache_dir:
        return pathlib.Path(jax.config.jax_compilation_cache_dir)
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    directory = pathlib.Path(base).expanduser() / "avs_jax"
    remove_oldest(directory, MAX_BYTES)
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_SECONDS)
    return directory


def announce_compilation(what: str, duration: str = "a minute or more on a CPU") -> None:
    """Says on stderr what is compiled, how long that takes, and where the result is kept."""
    place = jax.config.jax_compilation_cache_dir
    kept = f"; only the first time, {place} keeps it" if place else ""
    print(f"note: compiling {what}: {duration}{kept}", file=sys.stderr, flush=True)


def remove_oldest(directory: pathlib.Path, max_bytes: int) -> None:
    """Removes the files of a folder that were read or written least recently, down to a size.

    Other processes may read, write and remove files at the same time.
    """
    found = []
    for path in directory.glob("*-cache"):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        found.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= max_bytes:
            return
        try:
            path.unlink(missing_ok=True)
        except OSError:  # a folder that only others may write to
            return
        total -= size
