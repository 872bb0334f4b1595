"""A block's gradient with rounded products against float32, at a small size."""

import pytest

from bench import block_gradient
from bench.block_gradient import Found, measure
from bench.subjects import SHAPE
from ditflow.models.protocols import Grid

SMALL = SHAPE | {"max_text_seq_length": 10}


@pytest.mark.parametrize("outliers", [False, True], ids=["plain", "outliers"])
def test_more_rounding_is_farther_from_float32(outliers):
    found = measure(outliers, SMALL, Grid(2, 3, 4))
    assert list(found) == list(block_gradient.WAYS)
    gradients = [row.gradient for row in found.values()]
    assert gradients == sorted(gradients, reverse=True) and 0.9 < gradients[-1] < gradients[0] < 1
    assert all(0.9 < row.output < 1 and 0.95 < row.length < 1.05 for row in found.values())
    assert found["--compute int8"].output == found["--compute int8-forward"].output


def test_outlier_channels_are_made():
    plain, outliers = (measure(each, SMALL, Grid(2, 3, 4))["--compute int8"] for each in (False, True))
    assert outliers.output < plain.output


def test_the_command(monkeypatch, capsys):
    monkeypatch.setattr(block_gradient, "measure", lambda outliers: {"way": Found(0.5, 0.25, 1.0)})
    block_gradient.main()
    out = capsys.readouterr().out
    assert "| random weights | output's cosine |" in out and "every 100th channel 30 times as large" in out
    assert out.count("| way | 0.50000 | 0.25000 | 1.00000 |") == 2
