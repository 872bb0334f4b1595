"""What is said about settings that change nothing in a run."""

import logging
from dataclasses import replace

import pytest

from ditflow.jobs.checks import warn_without_effect


@pytest.mark.parametrize(
    "change, said",
    [
        ({}, ""),
        ({"x0_after": 1}, ""),
        ({"x0_after": 0.95}, "x0_after: it rounds to all guided steps, so it changes nothing"),
        ({"guidance": False}, "x0_after: nothing is optimised, so it changes nothing"),
        ({"guided": 0}, "x0_after: nothing is optimised, so it changes nothing"),
    ],
    ids=str,
)
def test_a_share_without_effect_is_noticed(settings, change, said, caplog):
    with caplog.at_level(logging.WARNING, "ditflow"):
        warn_without_effect(replace(settings, **{"steps": 10, "guided": 0.5, "x0_after": 0.4, **change}))
    assert caplog.messages == ([said] if said else [])
