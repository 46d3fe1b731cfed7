"""The memory of this process, and how what it freed returns to the system.

A compilation takes gigabytes in small blocks. glibc keeps the pages of freed blocks for later ones,
but the arrays of a step are mapped on their own. So without `return_freed_memory` between the two,
the peak of a training is the compiler's memory plus the step's, not the larger of them.
"""

import ctypes
import dataclasses
import gc
import pathlib
import re

from avs_jax.runtime.memory import GIB

STATUS = pathlib.Path("/proc/self/status")  # Linux only


@dataclasses.dataclass(frozen=True)
class ProcessMemory:
    """Bytes of physical memory that this process holds, and the most that it ever held."""

    resident: int
    peak: int

    @classmethod
    def now(cls) -> "ProcessMemory | None":
        """None where the system does not say."""
        try:
            text = STATUS.read_text()
        except OSError:
            return None
        rows = re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB", text, re.MULTILINE)
        found = {name: int(kib) << 10 for name, kib in rows}
        if len(found) != 2:
            return None
        return cls(resident=found["VmRSS"], peak=found["VmHWM"])

    def as_scalars(self, when: str) -> dict[str, int]:
        return {f"process_bytes/{when}/{k}": n for k, n in dataclasses.asdict(self).items()}

    def __str__(self) -> str:
        return f"resident {self.resident / GIB:.2f} GiB, peak {self.peak / GIB:.2f} GiB"


def return_freed_memory() -> None:
    """Gives freed heap back to the system; does nothing where the C library cannot."""
    gc.collect()
    if (trim := _malloc_trim()) is not None:
        trim(0)


def _malloc_trim():
    """glibc's function, or None."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library, or Windows
        return None
