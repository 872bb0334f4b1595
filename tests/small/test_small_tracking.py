"""The tracking stage of the small model: attention learns to follow what moves."""

import math

import numpy as np
import pytest
import torch

from ditflow.models.families import family_of
from ditflow.models.protocols import Grid
from ditflow.small.training.split import TRAINING_SEEDS, training_clips
from ditflow.small.training.tracking import tracking_error, true_flows
from ditflow.small.truth import true_flow

GRID = Grid(frames=2, height=3, width=4)
TOKENS = GRID.height * GRID.width


def pointing(places):
    """Queries and keys whose attention is all at `places` [2 frames, tokens] in both frames."""
    heads, certain = 2, 200.0
    key = torch.eye(TOKENS).repeat(2, 1)  # [tokens, channels]: the same in both frames
    query = torch.stack([torch.eye(TOKENS)[there] for there in places]).flatten(0, 1)
    return (certain * query).expand(1, heads, -1, -1), key.expand(1, heads, -1, -1)


def one_step_right():
    """A flow of one token per frame towards the other frame, and the goals of all tokens."""
    flow = torch.zeros(1, 2, 2, TOKENS, 2)
    flow[0, 0, 1, 5, 0], flow[0, 1, 0, 6, 0] = 1, -1
    places = torch.arange(TOKENS).repeat(2, 1)
    places[0, 5], places[1, 6] = 6, 5
    return flow, places


def test_attention_that_follows_has_no_error():
    flow, places = one_step_right()
    assert tracking_error(*pointing(places), flow, GRID) < 1e-5


def test_moving_tokens_count_as_much_as_still_ones():
    flow, places = one_step_right()
    lost, strayed = places.clone(), places.clone()
    lost[0, 5] = 5  # one of the two that move
    strayed[0, 0] = 1  # one of 22 that do not
    errors = [float(tracking_error(*pointing(wrong), flow, GRID)) for wrong in (lost, strayed)]
    assert errors[0] > 10 and errors[0] / errors[1] == pytest.approx(22 / 2, rel=1e-3)


def test_a_frame_is_not_compared_with_itself():
    flow, places = one_step_right()
    query, key = pointing(places)
    flow[0, 0, 0, 3], flow[0, 1, 1, 3] = 1.0, -1.0
    assert tracking_error(query, key, flow, GRID) < 1e-3


def test_error_is_the_cross_entropy_of_motion_flow_attention():
    """Against loops in float64, with goals between tokens and outside the picture."""
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 3, 2 * TOKENS, 8, generator=generator).double().unbind()
    flow = 3 * torch.randn(1, 2, 2, TOKENS, 2, generator=generator)
    flow[:, :, :, ::3] = 0
    errors = {True: [], False: []}
    for frame, other in ((0, 1), (1, 0)):
        for token in range(TOKENS):
            logits = [
                sum(
                    float(query[0, head, frame * TOKENS + token] @ key[0, head, other * TOKENS + place])
                    for head in range(3)
                )
                / (3 * math.sqrt(8))
                for place in range(TOKENS)
            ]
            attention = np.exp(logits) / np.exp(logits).sum()
            row, column = divmod(token, GRID.width)
            x, y = (float(part) for part in flow[0, frame, other, token])
            x, y = min(max(column + x, 0), GRID.width - 1), min(max(row + y, 0), GRID.height - 1)
            error = 0.0
            for place in range(TOKENS):
                there_y, there_x = divmod(place, GRID.width)
                share = max(0, 1 - abs(x - there_x)) * max(0, 1 - abs(y - there_y))
                error -= share * math.log(attention[place])
            errors[token % 3 > 0].append(error)
    expected = (np.mean(errors[True]) + np.mean(errors[False])) / 2
    assert float(tracking_error(query, key, flow, GRID)) == pytest.approx(expected, rel=1e-5)


def test_clips_in_which_nothing_moves_have_an_error_too():
    flow, places = torch.zeros(1, 2, 2, TOKENS, 2), torch.arange(TOKENS).repeat(2, 1)
    assert tracking_error(*pointing(places), flow, GRID) < 1e-5
    assert tracking_error(*pointing(places.flip(1)), flow, GRID) > 10


def test_true_flows_are_those_of_the_encoded_clips():
    """In order, without clips whose caption is held out."""
    grid = Grid(6, 8, 12)
    clips = list(training_clips(TRAINING_SEEDS[:40]))
    found = true_flows(grid, "small", TRAINING_SEEDS[:40])
    assert len(found) == len(clips) < 40
    for flow, clip in zip(found, clips, strict=True):
        wanted, _ = true_flow(clip.centroids, clip.scene.radii, 96, grid, family_of("small").latent_spans(24))
        np.testing.assert_allclose(flow, wanted, atol=5e-3)
