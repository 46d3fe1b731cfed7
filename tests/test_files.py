"""Files and folders that appear whole or not at all."""

import errno
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from avs_jax import files


def test_a_file_appears_whole(tmp_path):
    path = tmp_path / "deep" / "a.json"
    with files.atomic_file(path) as file:
        file.write(b"one")
        assert not path.exists()
    assert path.read_bytes() == b"one"
    files.write_atomically(path, "zwei ü")
    assert path.read_text(encoding="utf-8") == "zwei ü"
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_an_exception_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(KeyError), files.atomic_file(path) as file:
        file.write(b"new")
        raise KeyError("x")
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_names_the_file_and_its_size(tmp_path):
    with pytest.raises(OSError, match=r"a.npz: no space left .* about 5 MB"):
        with files.atomic_path(tmp_path / "a.npz", 5_000_000):
            raise OSError(errno.ENOSPC, "full")
    assert not list(tmp_path.iterdir())


def test_a_folder_replaces_the_old_one_and_all_in_it(tmp_path):
    path = tmp_path / "report"
    path.mkdir()
    (path / "stale.npz").write_bytes(b"x")
    with files.atomic_folder(path) as folder:
        (folder / "masks").mkdir()
        (folder / "masks" / "0.png").write_bytes(b"y")
        assert (path / "stale.npz").exists()
    assert [p.name for p in path.rglob("*")] == ["masks", "0.png"]
    assert [p.name for p in tmp_path.iterdir()] == ["report"]


def test_a_link_to_a_folder_stays_and_its_folder_is_replaced(tmp_path):
    (tmp_path / "disk" / "big").mkdir(parents=True)
    (tmp_path / "disk" / "big" / "stale").touch()
    (tmp_path / "out").symlink_to("disk/big")
    (tmp_path / "disk" / "big.replaced").symlink_to("big")  # what earlier versions left
    for _ in range(2):
        with files.atomic_folder(tmp_path / "out") as folder:
            (folder / "new").touch()
            assert folder.parent == tmp_path / "disk"
    assert (tmp_path / "out").is_symlink() and os.listdir(tmp_path / "out") == ["new"]
    assert os.listdir(tmp_path / "disk") == ["big"]


def test_an_exception_keeps_the_old_folder(tmp_path):
    path = tmp_path / "report"
    path.mkdir()
    (path / "old").write_bytes(b"x")
    with pytest.raises(KeyError), files.atomic_folder(path) as folder:
        (folder / "new").write_bytes(b"y")
        raise KeyError("x")
    assert [p.name for p in tmp_path.rglob("*")] == ["report", "old"]


def test_a_kill_between_the_renames_loses_nothing(tmp_path):
    path = tmp_path / "report"
    path.mkdir()
    (path / "old").write_bytes(b"x")
    script = (
        "import os, signal\n"
        "from avs_jax import files\n"
        "real = os.replace\n"
        "def replace(a, b):\n"
        f"    if str(b) == {str(path)!r}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    real(a, b)\n"
        "os.replace = replace\n"
        f"with files.atomic_folder({str(path)!r}) as f: (f / 'new').write_bytes(b'y')\n"
    )
    root = pathlib.Path(__file__).resolve().parent.parent
    ended = subprocess.run([sys.executable, "-c", script], cwd=root)
    assert ended.returncode == -signal.SIGKILL and not path.exists()
    with pytest.raises(KeyError), files.atomic_folder(path):
        raise KeyError("x")
    assert os.listdir(path) == ["old"] and os.listdir(tmp_path) == ["report"]


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_regular_file_is_refused(tmp_path, kind):
    path = {"device": pathlib.Path("/dev/zero"), "folder": tmp_path}.get(kind, tmp_path / "pipe")
    if kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(OSError, match=str(path)):
        files.read_regular(path)


def test_larger_files_than_allowed_are_not_read(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert files.read_regular(path, 5) == b"12345"
    with pytest.raises(OSError, match="5 bytes, more than the 4 allowed"):
        files.read_regular(path, 4)


def test_a_folder_never_replaces_a_file(tmp_path):
    (tmp_path / "clip.mp4").write_text("a video")
    with pytest.raises(OSError, match="is a file; the results need a folder"):
        with files.atomic_folder(tmp_path / "clip.mp4"):
            pass
    assert (tmp_path / "clip.mp4").read_text() == "a video" and len(list(tmp_path.iterdir())) == 1
