"""Every test runs on 8 fake CPU devices and without network.

Silent rank promotion and warnings are errors. XLA compiles without its expensive passes: the suite
compiles far more than it computes. The whole model through the command lines (test_convert) is the
exception and runs as users run it. What one worker compiled the others find.
"""

import gc
import os
import pathlib
import signal
import socket
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    ).strip()

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell's background jobs ignore it, and so would the programs that tests stop by it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = pathlib.Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".pytest_cache" / "xla"))
jax.config.update("jax_persistent_cache_enable_xla_caches", "none")  # as use_compilation_cache

GOLDEN = ROOT / "tests" / "golden"


@pytest.fixture
def golden_dir() -> pathlib.Path:
    """The folder of measured arrays."""
    return GOLDEN


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """A file's compiled programs go with it; those of the whole suite would fill the memory."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """A test that opens a connection to another machine fails."""
    connect = socket.socket.connect

    def guarded(self, address):
        local = not isinstance(address, tuple) or address[0] in ("127.0.0.1", "localhost", "::1")
        if not local:
            raise RuntimeError(f"a test tried to reach {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
