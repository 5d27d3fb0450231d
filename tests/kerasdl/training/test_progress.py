"""Long work says how far it is, short work says nothing."""

import itertools
import time

import pytest

from kerasdl.data import pipeline
from kerasdl.training import progress


@pytest.fixture
def seconds(monkeypatch):
    """Sets how long each look at the clock takes."""

    def set_to(value):
        clock = itertools.count(0, value)
        monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))

    return set_to


def measured(count, **options):
    return list(pipeline.slices(count, 10, "Measuring", **options))


def test_a_log_file_gets_a_line_each_half_minute_with_the_time_to_go(seconds, capsys):
    seconds(4)  # a look at each of the six parts
    assert len(measured(60)) == 6
    assert capsys.readouterr() == ("", "Measuring: 30 of 60, about 12 s to go.\n")
    seconds(11)
    assert len(measured(60)) == 6
    assert capsys.readouterr().err == (
        "Measuring: 10 of 60, about 55 s to go.\nMeasuring: 40 of 60, about 22 s to go.\n"
    )


def test_short_work_is_silent(seconds, capsys, monkeypatch):
    seconds(0.1)
    assert measured(60)[-1] == slice(50, 60)
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    assert len(measured(60)) == 6
    assert capsys.readouterr() == ("", "")


def test_long_work_is_a_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(progress, "SHORT", 0)
    assert len(measured(60)) == 6
    error = capsys.readouterr().err
    assert "Measuring" in error
    assert " to go" not in error


def test_a_loop_without_a_name_says_nothing(seconds, capsys, monkeypatch):
    seconds(100)
    assert len(list(pipeline.slices(60, 10))) == 6
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert len(list(pipeline.sorted_slices(range(60), 10))) == 6
    assert capsys.readouterr() == ("", "")
