"""A folder that is replaced as a whole holds nothing but earlier results."""

import pytest

from avs_jax.output_folder import check_output_folder
from avs_jax.spec import UsageError


@pytest.mark.parametrize(
    "output, message",
    [
        ("clips", r"with .*clips/a.mp4 in it"),
        ("clips/a.mp4", r"with .*clips/a.mp4 in it"),
        ("link", r"with .*clips/a.mp4 in it"),
        ("clips/..", "with the working directory in it"),
        (".", "with the working directory in it"),
        ("thesis", r"not empty and holds no earlier results \(results.json\)"),
        ("", "--output is empty"),
    ],
)
def test_what_would_be_lost_is_named(tmp_path, monkeypatch, output, message):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    for name in ("clips", "thesis"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.mp4").touch()
    (tmp_path / "link").symlink_to("clips")
    output = output if output in ("", ".") else str(tmp_path / output)
    with pytest.raises(UsageError, match=message):
        check_output_folder(output, [str(tmp_path / "clips" / "a.mp4")], "results.json")


def test_new_empty_and_earlier_results(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "earlier").mkdir()
    for name in ("results.json", "overlay.mp4"):
        (tmp_path / "earlier" / name).touch()
    for name in ("new", "empty", "earlier"):
        assert str(check_output_folder(name, ["clips/a.mp4"], "results.json")) == name
