"""What is said about settings that change nothing in a run, or do not work on a small model."""

import logging
from dataclasses import replace

import pytest
import torch

from ditflow.jobs.checks import check_run, warn_without_effect
from ditflow.settings import Settings


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


@pytest.mark.parametrize(
    "change, said",
    [
        (
            {"prompt": "a purple dog on a red background"},
            "small does not know: 'dog'; it knows",
        ),
        ({"prompt": "a red circle", "source_prompt": "a ball"}, "small does not know: 'ball'"),
        ({"prompt": "a red circle on a blue background"}, ""),
        ({"optimise": "embedding"}, "--optimise embedding does not work well on small"),
        ({"optimise": "embedding", "guidance": False}, ""),
        ({"optimise": "embedding", "model": "small-sincos"}, ""),
    ],
    ids=str,
)
def test_limits_of_the_small_models(change, said, caplog):
    settings = Settings(**{"model": "small", **change})
    with caplog.at_level(logging.WARNING, "ditflow"):
        check_run(settings, torch.device("cpu"), settings.needs_gradient)
    assert [message[: len(said)] for message in caplog.messages] == ([said] if said else [])
