"""Tables of results: every kind of row that a task stores, and joining those of processes."""

import numpy as np
import pytest

from avs_jax.results.counts import FrameCounts
from avs_jax.results.table import Table, concatenate, interleave
from avs_jax.spec import InputError


def queries(ids, seed=0):
    """Rows of a grounding and captioning task: ragged windows and references."""
    rng = np.random.default_rng(seed)
    rows = [
        {
            "query_id": f"q{i}",
            "rank": i,
            "windows": rng.random((i % 3 + 1, 3)),
            "references": np.array(["a dog", "a barking dog", "woof"][: i % 2 + 1]),
            "embedding": rng.random(4, np.float32),
        }
        for i in ids
    ]
    return rows, Table.from_rows(rows, {"split": "val"})


def assert_same(a, b):
    assert list(a.columns) == list(b.columns) and a.facts == b.facts
    for name in a.columns:
        np.testing.assert_array_equal(a[name], b[name])
        assert a[name].dtype == b[name].dtype


def test_ragged_rows_are_padded():
    rows, table = queries(range(5))
    assert len(table) == 5
    assert table["windows"].shape == (5, 3, 3) and table["references"].shape == (5, 2)
    for i, row in enumerate(rows):
        n = len(row["windows"])
        np.testing.assert_array_equal(table["windows"][i, :n], row["windows"])
        assert np.isnan(table["windows"][i, n:]).all()
        found = [words for words in table["references"][i] if words]
        assert found == list(row["references"])
    assert table["embedding"].dtype == np.float32 and table["rank"].dtype.kind == "i"
    with pytest.raises(ValueError, match="only floats and strings"):
        Table.from_rows([{"x": np.arange(2)}, {"x": np.arange(3)}], {})


def test_save_and_load(tmp_path):
    _, table = queries(range(5))
    for name in ("a.npz", "b.npz"):
        table.save(tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert_same(Table.load(tmp_path / "a.npz"), table)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz"]


def test_counts_written_by_earlier_versions_load(tmp_path):
    columns = {
        "clip_id": np.array(["a", "a"]),
        "category": np.array(["dog", "dog"]),
        "frame_index": np.arange(2, dtype=np.int32),
        "valid": np.array([True, False]),
        "counts/inter": np.array([3, 0]),
        "counts/tp": np.arange(8).reshape(2, 4),
    }
    facts = np.array('{"split": "test"}')
    np.savez_compressed(tmp_path / "counts.npz", version=2, **columns, facts_json=facts)
    counts = FrameCounts.load(tmp_path / "counts.npz")
    assert_same(counts, FrameCounts(columns, {"split": "test"}))
    assert list(counts.counts) == ["inter", "tp"] and not counts.is_semantic
    assert len(counts.scored()) == 1 and isinstance(counts.scored(), FrameCounts)
    counts.save(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "counts.npz").read_bytes()


class Executed:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_what_is_no_table_is_refused(tmp_path):
    path = tmp_path / "table.npz"
    _, table = queries(range(3))
    table.save(path)
    with pytest.raises(InputError, match="not a FrameCounts file.*lacks the columns.*clip_id"):
        FrameCounts.load(path)
    whole = path.read_bytes()
    middle = len(whole) // 3
    for damaged in (whole[:middle], b"PK", whole[:middle] + b"\0" * 40 + whole[middle + 40 :]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="table.npz: no npz file, or damaged"):
            Table.load(path)
    np.savez(path, facts_json=np.array("{}"), x=np.array([Executed(tmp_path / "executed")]))
    with pytest.raises(InputError, match="'x': an array of object, which is not read"):
        Table.load(path)
    assert not (tmp_path / "executed").exists()
    with open(path, "wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(InputError, match="damaged"):
        Table.load(path)
    with pytest.raises(FileNotFoundError):
        Table.load(tmp_path / "nothing.npz")


def test_columns_are_checked():
    with pytest.raises(ValueError, match="different lengths.*'b': 2"):
        Table({"a": np.zeros(3), "b": np.zeros(2)})
    with pytest.raises(ValueError, match="'a'. hold neither"):
        Table({"a": np.array([None])})


def test_take_and_groups():
    _, table = queries([0, 1, 1, 2])
    assert [(g.start, g.stop) for g in table.groups("query_id")] == [(0, 1), (1, 3), (3, 4)]
    np.testing.assert_array_equal(table.take(table["rank"] > 0)["rank"], [1, 1, 2])
    np.testing.assert_array_equal(table.take([3, 0])["rank"], [2, 0])
    with pytest.raises(ValueError, match="a query_id is in the table twice"):
        table.take([0, 1, 3, 2]).groups("query_id")
    assert table.take(slice(0, 0)).groups("query_id") == []


def test_concatenate_pads_to_the_widest():
    rows, whole = queries(range(5))
    parts = [Table.from_rows(rows[a:b], {"split": "val"}) for a, b in ((0, 1), (1, 1), (1, 5))]
    assert parts[0]["windows"].shape == (1, 1, 3) and parts[1].columns == {}
    assert_same(concatenate(parts), whole)
    assert len(concatenate([parts[1], parts[1]])) == 0


@pytest.mark.parametrize("num_processes, share", [(2, 1), (3, 1), (2, 2), (3, 2)])
def test_interleave_restores_dataset_order(num_processes, share):
    rows, whole = queries(range(7))
    parts = []
    for process in range(num_processes):
        own = [row for i, row in enumerate(rows) if i // share % num_processes == process]
        parts.append(Table.from_rows(own, {"split": "val"}))
    assert_same(interleave(parts, share, by="query_id"), whole)
    with pytest.raises(ValueError, match="several processes|twice"):
        interleave([parts[0], *parts], share, by="query_id")
