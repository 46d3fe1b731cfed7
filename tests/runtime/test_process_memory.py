"""What a process frees returns to the system."""

import pytest

from avs_jax.runtime import process_memory
from avs_jax.runtime.process_memory import ProcessMemory, return_freed_memory

MIB = 2**20
needs_proc = pytest.mark.skipif(ProcessMemory.now() is None, reason="needs Linux")
needs_glibc = pytest.mark.skipif(process_memory._malloc_trim() is None, reason="needs glibc")


@needs_proc
@needs_glibc
def test_freed_blocks_between_kept_ones_are_given_back():
    blocks = [b"x" * 60_000 for _ in range(1200)]
    kept = blocks[::100] + blocks[-1:]  # so that the heap cannot shrink from its end
    full = ProcessMemory.now()
    del blocks
    return_freed_memory()
    after = ProcessMemory.now()
    assert len(kept) == 13 and full.resident - after.resident > 40 * MIB
    assert after.peak - after.resident > 40 * MIB
    assert after.as_scalars("after")["process_bytes/after/resident"] == after.resident


def test_another_system_changes_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(process_memory, "_malloc_trim", lambda: None)
    return_freed_memory()
    monkeypatch.setattr(process_memory, "STATUS", tmp_path / "status")
    assert ProcessMemory.now() is None
    (tmp_path / "status").write_text("Name:\tpython\n")
    assert ProcessMemory.now() is None
    (tmp_path / "status").write_text("VmHWM:\t    3072 kB\nVmRSS:\t    1024 kB\n")
    assert ProcessMemory.now() == ProcessMemory(resident=MIB, peak=3 * MIB)
