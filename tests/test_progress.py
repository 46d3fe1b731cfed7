"""Progress: a line that a terminal replaces, lines in a log file, and the remaining time."""

import io
import sys

import pytest

from avs_jax import progress


class Screen(io.StringIO):
    def __init__(self, is_terminal):
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self):
        return self.is_terminal


@pytest.fixture
def watch(monkeypatch):
    """A function: what items of these durations, in seconds, show."""

    def watch(durations, is_terminal):
        screen, now = Screen(is_terminal), [100.0]
        monkeypatch.setattr(sys, "stderr", screen)
        monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
        for seconds in progress.tracked(durations, "clips", len(durations), "clip"):
            now[0] += seconds
        return screen.getvalue()

    return watch


def test_a_log_file_gets_lines_with_the_remaining_time(watch):
    # The first item compiles: its 60 seconds are not in the speed.
    text = watch([60, 20, 20, 20, 0.25, 3600], is_terminal=False)
    assert text.splitlines() == [
        "clips: 1/6 clips",
        "clips: 3/6 clips  20.0 s each  0:01:00 left",
        "clips: 6/6 clips  732.0 s each  0:00:00 left",
    ]


def test_short_work_leaves_nothing_in_a_log_file(watch):
    assert watch([3, 3, 3], is_terminal=False) == ""


def test_a_terminal_keeps_one_line_and_loses_it_at_the_end(watch):
    text = watch([1, 0.25, 0.25], is_terminal=True)
    shown = text.split(progress.CLEAR)
    assert shown[1:] == [
        "clips: 0/3 clips",
        "clips: 1/3 clips",
        "clips: 2/3 clips  4.0 clips/s  0:00:00 left",
        "clips: 3/3 clips  4.0 clips/s  0:00:00 left",
        "",
    ]
    assert "\n" not in text


def test_clock():
    assert progress.clock(3723.9) == "1:02:03"
