"""Reading ahead and writing behind in threads: order, bounds, and every way to end."""

import threading
import time

import pytest

from avs_jax.inference.side_by_side import ahead, behind


class Source:
    """Items 0, 1, ... that notes what it made and whether it was closed."""

    def __init__(self, count, error=None):
        self.made, self.is_closed = 0, False
        self._count, self._error = count, error

    def __iter__(self):
        return self.items()

    def items(self):
        try:
            for i in range(self._count):
                self.made += 1
                yield i
            if self._error:
                raise self._error
        finally:
            self.is_closed = True


@pytest.fixture(autouse=True)
def no_thread_left():
    before = threading.active_count()
    yield
    assert threading.active_count() == before


@pytest.mark.parametrize("count", [0, 1, 3])
def test_items_keep_their_order_and_only_a_few_wait(count):
    source, written, given, most = Source(20), [], 0, 0

    def write(item):
        time.sleep(0.004)
        written.append(item)

    with behind(count) as later, ahead(source.items(), count) as items:
        for item in items:
            later(write, item)
            given += 1
            time.sleep(0.002)
            most = max(most, source.made - item - 1)
            assert given - len(written) <= count + 1
    assert written == list(range(20)) and source.is_closed
    assert most <= count and (count == 0 or most > 0)


@pytest.mark.parametrize("count", [0, 2])
def test_an_error_of_the_reader_is_raised_by_the_loop(count):
    source, written = Source(3, ValueError("damaged")), []
    with pytest.raises(ValueError, match="damaged"):
        with behind(count) as later, ahead(source.items(), count) as items:
            for item in items:
                later(written.append, item)
    assert written == [0, 1, 2][: len(written)] and source.is_closed


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("length", [1, 50])  # noticed at the end, or by a later call
def test_an_error_of_the_writer_ends_the_loop(count, length):
    source = Source(length)

    def write(item):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        with behind(count) as later, ahead(source.items(), count) as items:
            for item in items:
                later(write, item)
    assert source.is_closed and source.made < 10


def test_an_interrupt_starts_nothing_new():
    source, written, is_open = Source(50), [], threading.Event()

    def write(item):
        is_open.wait()
        written.append(item)

    with pytest.raises(KeyboardInterrupt):
        with behind(2) as later, ahead(source.items(), 2) as items:
            for item in items:
                later(write, item)
                if item == 2:
                    threading.Timer(0.05, is_open.set).start()
                    raise KeyboardInterrupt
    assert written == [0] and source.is_closed and source.made <= 5
