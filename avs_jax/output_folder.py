"""What --output may name where a program replaces a folder as a whole (files.atomic_folder)."""

import pathlib
from collections.abc import Iterable

from avs_jax.spec import UsageError


def check_output_folder(output: str, inputs: Iterable[str], result: str) -> pathlib.Path:
    """The folder of --output, new, empty or with earlier results; call it before any work.

    Args:
      inputs: paths that the program reads.
      result: name of a file that all its results have.

    Raises:
      UsageError: replacing the folder would delete something else.
    """
    if not output:
        raise UsageError("--output is empty")
    folder = pathlib.Path(output).expanduser()
    whole = folder.resolve()
    for path in (".", *inputs):
        if pathlib.Path(path).expanduser().resolve().is_relative_to(whole):
            what = "the working directory" if path == "." else path
            raise UsageError(f"--output={output} would be replaced as a whole, with {what} in it")
    if whole.is_dir() and any(whole.iterdir()) and not (whole / result).is_file():
        raise UsageError(
            f"--output={output} would be replaced as a whole, but it is not empty and holds no "
            f"earlier results ({result})"
        )
    return folder
