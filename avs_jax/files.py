"""Files and folders that take their name only once they are complete and on the disk.

A reader sees the old content or the new one, never a part, whatever kills the writer. While it is
written, `masks.npz` is called `masks.unfinished.npz`; what a kill leaves under that name is
overwritten by the next attempt. Nothing here keeps two writers of one path apart: a lock does.
"""

import contextlib
import errno
import os
import pathlib
import shutil
import stat
from collections.abc import Iterator
from typing import BinaryIO

UNFINISHED = ".unfinished"  # in the name of what is being written
Path = str | os.PathLike


@contextlib.contextmanager
def atomic_path(path: Path, size: int | None = None) -> Iterator[pathlib.Path]:
    """Yields a path to write to; what is there at the end replaces `path`.

    Its folder is made if need be. `size` is about how many bytes it will have, for the message
    about a full disk. If it cannot be written, nothing of it is left.
    """
    path = pathlib.Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = _unfinished(path)
    try:
        yield unfinished
        _sync(unfinished)
        os.replace(unfinished, path)
        _sync(path.parent)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        needed = "" if size is None else f" for about {size / 1e6:,.0f} MB"
        raise OSError(f"{path}: no space left on the disk{needed}; nothing was written") from error
    finally:
        unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_file(path: Path, size: int | None = None) -> Iterator[BinaryIO]:
    """`atomic_path`, opened for writing bytes."""
    with atomic_path(path, size) as unfinished, open(unfinished, "wb") as file:
        yield file


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a whole file, text as UTF-8."""
    data = content.encode() if isinstance(content, str) else content
    with atomic_file(path, len(data)) as file:
        file.write(data)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[pathlib.Path]:
    """Yields an empty folder to fill; at the end it replaces `path` and everything in it.

    Its parent is made if need be. Where `path` is a link, the folder that it names is replaced.
    Where the block raises, `path` is as it was. A kill between the two renames leaves the earlier
    folder as `NAME.replaced`; the next call restores it.

    Raises:
      OSError: `path` is a file, which stays.
    """
    path = pathlib.Path(os.path.realpath(os.path.expanduser(path)))
    if path.exists() and not path.is_dir():
        raise OSError(errno.ENOTDIR, "is a file; the results need a folder", os.fspath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished, replaced = _unfinished(path), path.with_name(f"{path.name}.replaced")
    if replaced.is_dir() and not path.exists():
        os.replace(replaced, path)
    for leftover in (unfinished, replaced):
        if leftover.is_symlink():
            leftover.unlink()
        shutil.rmtree(leftover, ignore_errors=True)
    unfinished.mkdir()
    try:
        yield unfinished
        sync_folder(unfinished)
        if path.exists():
            os.replace(path, replaced)
        os.replace(unfinished, path)
        _sync(path.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def sync_folder(path: pathlib.Path) -> None:
    """Waits until a folder, everything in it and its name are on the disk."""
    for written in (*path.rglob("*"), path, path.parent):
        _sync(written)


def open_regular(path: Path) -> BinaryIO:
    """Opens a file for reading bytes; OSError for a folder, a device or a pipe (it would wait)."""
    path = os.path.expanduser(path)
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    return file


def read_regular(path: Path, max_bytes: int | None = None) -> bytes:
    """A regular file's bytes; OSError as `open_regular`, or if it has more than `max_bytes`."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if max_bytes is not None and size > max_bytes:
            reason = f"{size:,} bytes, more than the {max_bytes:,} allowed"
            raise OSError(errno.EFBIG, reason, os.fspath(path))
        return file.read()


def is_leftover(path: Path) -> bool:
    """Whether a kill left this file or folder, or it is being written."""
    name = pathlib.Path(path).name
    return UNFINISHED in name or name.endswith(".replaced")


def _unfinished(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f"{path.stem}{UNFINISHED}{path.suffix}")


def _sync(path: pathlib.Path) -> None:
    """Waits until a file's or folder's content is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
