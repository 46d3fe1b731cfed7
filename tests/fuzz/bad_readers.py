"""Readers with a fault each, for the test of the runner. They read what is undamaged."""

import os
import signal
import time

from avs_jax.spec import InputError


def _is_good(path) -> bool:
    return path.read_bytes() == bytes(range(256))


def crashes(path):
    if not _is_good(path):
        os.kill(os.getpid(), signal.SIGSEGV)


def exits(path):
    if not _is_good(path):
        os._exit(3)


def waits(path):
    if not _is_good(path):
        time.sleep(60)


def loops(path):
    while not _is_good(path):
        pass


def allocates(path):
    if not _is_good(path):
        bytearray(1 << 30)


def raises(path):
    if not _is_good(path):
        raise KeyError("x")


def writes_lines(path):
    if not _is_good(path):
        raise InputError("one\ntwo")
