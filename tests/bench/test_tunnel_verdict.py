"""The rule by which the wind tunnel judges, on made numbers."""

import random

import pytest

from bench.tunnel.verdict import MARGINS, verdict
from ditflow.evaluation.intervals import Interval, interval

FIDELITY, ERROR = MARGINS["path_fidelity"], MARGINS["path_error"]


def judged(fidelity, error):
    """The verdict of intervals (least, most) of both measures."""
    found = {"path_fidelity": fidelity, "path_error": error}
    return verdict({name: Interval((a + b) / 2, (b - a) / 2, 6) for name, (a, b) in found.items()})


def of_pairs(fidelity, error):
    return verdict({"path_fidelity": interval(fidelity), "path_error": interval(error)})


@pytest.mark.parametrize(
    ("fidelity", "error", "said"),
    [
        ((-0.019, 0.019), (-0.029, 0.029), "same"),
        ((0.0, 0.0), (0.0, 0.0), "same"),
        ((-0.5, -0.021), (-0.01, 0.01), "worse"),  # fidelity lost
        ((-0.01, 0.01), (0.031, 0.5), "worse"),  # undershoot, which fidelity hides
        ((0.1, 0.2), (0.031, 0.5), "worse"),  # better in one is no excuse for worse in the other
        ((-0.5, -0.019), (-0.01, 0.01), "not known with 6 pairs"),  # below zero, perhaps within the margin
        ((-0.021, 0.0), (-0.01, 0.01), "not known with 6 pairs"),
        ((-0.01, 0.01), (0.0, 0.031), "not known with 6 pairs"),
        ((-0.01, 0.01), (-0.2, 0.2), "not known with 6 pairs"),
        ((0.021, 0.5), (-0.01, 0.01), "not known with 6 pairs"),  # better is not the same, and not worse
        ((-0.01, 0.01), (-0.5, -0.031), "not known with 6 pairs"),
        ((-0.02, 0.02), (-0.03, 0.03), "not known with 6 pairs"),  # a margin itself is outside
    ],
)
def test_the_rule(fidelity, error, said):
    assert (FIDELITY, ERROR) == (0.02, 0.03)
    assert judged(fidelity, error) == said


def test_planted_differences():
    assert of_pairs([0.001, -0.002, 0.003, 0.0], [0.002, -0.004, 0.001, 0.0]) == "same"
    assert of_pairs([-0.3, -0.25, -0.35, -0.28], [0.0, 0.01, -0.01, 0.0]) == "worse"
    assert of_pairs([0.3, -0.25, 0.35, -0.28], [0.0, 0.01, -0.01, 0.0]) == "not known with 4 pairs"


@pytest.mark.parametrize("difference", [0.0, -0.9])
def test_one_pair_says_nothing(difference):
    assert of_pairs([difference], [difference]) == "not known with 1 pair"


def test_two_pairs_need_a_difference_that_stands_out():
    assert of_pairs([-0.02, -0.2], [0.0, 0.0]) == "not known with 2 pairs"
    assert of_pairs([-0.9, -0.95], [0.0, 0.0]) == "worse"


def test_verdicts_are_rarely_wrong():
    """At the margin itself, where it is hardest, over many invented measurements of 8 pairs."""
    generator = random.Random(0)

    def said(mean, times=2000):
        draws = [[generator.gauss(mean, 0.005) for _ in range(8)] for _ in range(times)]
        verdicts = [of_pairs(fidelity, [0.0] * 8) for fidelity in draws]
        return {word: verdicts.count(word) / times for word in ("same", "worse")}

    assert said(-FIDELITY)["same"] < 0.035 and said(-FIDELITY)["worse"] < 0.035
    assert said(0)["same"] > 0.99 and said(-2 * FIDELITY)["worse"] > 0.99
