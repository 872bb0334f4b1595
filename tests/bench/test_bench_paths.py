"""Measures of a path."""

import math

import numpy as np
import pytest

from bench.paths import SPAN, displacement_cosine, growth, path_error, reach, trajectory_correlation
from ditflow.small.clips import made_clip


@pytest.fixture(scope="module")
def true():
    return made_clip(5).centroids


@pytest.fixture
def line():
    """A path of 24 frames, 2 pixels a frame to the right: 46 pixels long."""
    return np.stack([2.0 * np.arange(24), np.zeros(24)], axis=1)


def test_direction_and_shape(true):
    for measured in (displacement_cosine, trajectory_correlation):
        assert measured(true, true) == pytest.approx(1)
        assert measured(2 * true + 5, true) == pytest.approx(1)
        assert measured(-true, true) == pytest.approx(-1)
        assert measured(np.zeros_like(true), true) == 0
        assert measured(np.full_like(true, np.nan), true) == 0


def test_what_is_not_seen_counts_nothing(true):
    hidden = true.copy()
    hidden[len(true) // 2 :] = np.nan
    assert displacement_cosine(hidden, true) == pytest.approx((len(true) // 2 - SPAN) / (len(true) - SPAN))
    assert trajectory_correlation(hidden, true) == pytest.approx(1)


def test_path_error_is_a_share_of_the_way(line):
    assert path_error(line, line) == 0
    assert path_error(line + [0, 4.6], line) == pytest.approx(0.1)
    assert path_error(10 * line + [0, 46], 10 * line) == pytest.approx(0.1)
    half_off = line.copy()
    half_off[12:, 1] += 4.6
    assert path_error(half_off, line) == pytest.approx(0.1 / math.sqrt(2))


def test_reach_is_how_far_it_goes_not_where(line):
    assert reach(line, line) == pytest.approx(1)
    assert reach(line / 2 + 7, line) == pytest.approx(0.5)
    assert reach(-line, line) == pytest.approx(1)
    assert reach(np.zeros_like(line), line) == 0


def test_fidelity_hides_undershoot_and_the_others_do_not(line):
    short = line / 2
    assert displacement_cosine(short, line) == pytest.approx(1)
    assert path_error(short, line) > 0.2 and reach(short, line) == pytest.approx(0.5)


def test_an_object_that_is_not_seen_is_a_whole_path_away(line):
    nothing = np.full_like(line, np.nan)
    assert path_error(nothing, line) == 1 and reach(nothing, line) == 0
    hidden = line.copy()
    hidden[12:] = np.nan
    assert path_error(hidden, line) == pytest.approx(1 / math.sqrt(2))
    assert reach(hidden, line) == pytest.approx(8 / 20)


def test_growth_counts_doublings_of_the_width():
    widths = 2.0 ** np.linspace(0, 1, 24)
    assert growth(widths**2) == pytest.approx(20 / 23)  # between the means of the first and last SPAN frames
    assert growth(7 * widths[::-1] ** 2) == pytest.approx(-20 / 23)
    assert growth(np.ones(24)) == 0
    assert growth(np.zeros(24)) == growth(np.r_[np.ones(12), np.zeros(12)]) == 0
