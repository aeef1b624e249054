"""Rates and times left of a progress bar."""

import pytest

from leokit.cli import render


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = [0.0]
    monkeypatch.setattr(render.time, "monotonic", lambda: now[0])
    return now


def test_what_comes_before_the_first_step_is_not_in_the_rate(clock):
    pace = render._Pace()
    assert pace.at(0, 100)[:2] == ("", "")
    clock[0] = 50.0  # a first validation
    assert pace.at(1, 100)[:2] == ("", "")
    clock[0] = 52.0
    assert pace.at(5, 100) == ("2/s", "0:48 left", 52.0)


def test_work_that_goes_on_where_it_was_and_a_further_piece_of_it(clock):
    pace = render._Pace()
    assert pace.at(600, 1000)[:2] == ("", "")
    clock[0] = 10.0
    assert pace.at(601, 1000)[:2] == ("", "")
    clock[0] = 11.0
    assert pace.at(611, 1000)[:2] == ("10/s", "0:39 left")
    assert pace.at(0, 20) == ("", "", 0.0)


@pytest.mark.parametrize(
    ("value", "text"), [(0.39912, "0.399"), (27.13, "27.1"), (99.96, "100"), (1524.6, "1,525"), (20000.0, "20,000")]
)
def test_rates_have_no_powers_of_ten(value, text):
    assert render.few_digits(value) == text
