"""Weight files of every format under random damage."""

import io
import json
import pathlib
import pickle
import zipfile

import numpy as np
import pytest

from avs_jax.convert.reader import read_state_dict
from avs_jax.convert.writer import WRITERS
from tests.fuzz.runner import mutated, run_mutations
from tests.weight_files import Call, Storage, dumps, legacy_bytes, tensors_of, torch_tensor

pytestmark = pytest.mark.slow
RNG = np.random.default_rng(5)
ARRAYS = {
    "module.a.weight": RNG.standard_normal((3, 4), np.float32),
    "module.a.bias": RNG.standard_normal(5, np.float32),
    "module.half": np.ones((2, 3), np.float16),
    "module.index": np.arange(6).reshape(2, 3),
}
OPCODES = [
    getattr(pickle, name)
    for name in pickle.__all__
    if name.isupper() and isinstance(getattr(pickle, name), bytes)
] + [b"cnumpy\ndtype\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"h\0", b"h\1", b"h\2", b"q\1"]
JSON = [b"{", b"}", b"[", b"]", b",", b":", b"null", b'"F64"', b'"shape"', b'"data_offsets"', b'""']


def read(path: pathlib.Path) -> None:
    read_state_dict(path)


def read_zipped(path: pathlib.Path) -> None:
    """The files of a folder as members of an archive, so that checksums hide no damage."""
    archive = path.with_name("archive.zip")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for member in sorted(path.rglob("*")):
            if member.is_file():
                file.write(member, member.relative_to(path))
    read_state_dict(archive)


def written(file_format: str) -> bytes:
    file = io.BytesIO()
    WRITERS[file_format](file, ARRAYS, {"": 1, "a": 2})
    return file.getvalue()


def members(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def legacy() -> bytes:
    tensors, storages = tensors_of(ARRAYS)
    return legacy_bytes({"state_dict": tensors, "epoch": 3}, storages)


def nested() -> bytes:
    """Tensors pickled without torch.save, beside numpy arrays."""
    storage = Storage("f4", "7", bytes(12), 3)
    inner = Call("torch.storage", "_load_from_bytes", legacy_bytes(storage, [storage]))
    return dumps({"x": torch_tensor(inner, 1, (2,), (1,))}, protocol=3)


# kind -> good input, reader, tokens, number of mutations
KINDS = {
    "safetensors": (written("safetensors"), "read", JSON, 500),
    "torch_zip": (written("torch"), "read", OPCODES, 300),
    "torch_zip_members": (members(written("torch")), "read_zipped", OPCODES, 400),
    "torch_legacy": (legacy(), "read", OPCODES, 500),
    "pickle_0": (pickle.dumps({"model": ARRAYS}, 0), "read", OPCODES, 150),
    "pickle_2": (pickle.dumps({"model": ARRAYS}, 2), "read", OPCODES, 150),
    "pickle_5": (pickle.dumps({"model": ARRAYS}, 5), "read", OPCODES, 200),
    "pickle_nested": (nested(), "read", OPCODES, 200),
    "npz": (written("npz"), "read", (), 200),
    "npz_members": (members(written("npz")), "read_zipped", (), 300),
}


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_weight_files(kind):
    good, reader, tokens, count = KINDS[kind]
    counts = run_mutations(
        kind, good, f"tests.fuzz.test_weights.{reader}", count, seed=14, tokens=tokens
    )
    print(json.dumps(counts))
    assert counts["refused"] > count // 4  # the mutations do damage


def test_the_runner_finds_every_kind_of_failure():
    """Each reader below reads the good input only, and fails in its own way on the others."""
    good = bytes(range(256))
    for name, expected in (
        ("crashes", "SIGSEGV"),
        ("exits", "exit status 3"),
        ("waits", "took more than 0.2 s"),
        ("loops", "took more than 0.2 s"),
        ("allocates", "MemoryError"),
        ("raises", "KeyError"),
        ("writes_lines", "two"),
    ):
        reader = f"tests.fuzz.bad_readers.{name}"
        with pytest.raises(AssertionError, match=f"(?s) 2 of 2 mutations failed.*{expected}"):
            run_mutations(name, good, reader, 2, seed=0, seconds=0.2, memory=1 << 28)
    assert mutated(good, 0, 3) == mutated(good, 0, 3) != mutated(good, 0, 2)
