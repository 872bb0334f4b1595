"""Scores of blocks from their definition, and the block that is chosen from them."""

import math

import numpy as np
import pytest

from ditflow.guidance.block_scores import BlockScore, choose_block, moving_tokens, score_block

FRAMES, TOKENS = 3, 6


@pytest.fixture
def flows():
    """A flow, and a reference in which tokens 0 to 2 move, 3 is unknown in one pair, 4 and 5 are still."""
    generator = np.random.default_rng(0)
    reference = generator.normal(0, 2, (FRAMES, FRAMES, TOKENS, 2))
    reference[:, :, 3:] = 0
    reference[0, 1, 3] = reference[1, 2, 0] = np.nan
    flow = np.nan_to_num(reference).round() + generator.integers(-1, 2, reference.shape)
    flow[:, :, 3:] = 0
    flow[0, 2, 4] = (1, 0)
    return flow, reference


def test_moving_tokens_go_to_another_token_in_some_frame(flows):
    _, reference = flows
    reference[:, :, 5, 0] = 0.4
    reference[2, 0, 5, 0] = 0.6
    expected = np.zeros((FRAMES, TOKENS), bool)
    expected[:, :3] = expected[2, 5] = True
    assert np.array_equal(moving_tokens(reference), expected)


def test_scores_are_their_definition(flows):
    flow, reference = flows
    flow[1, 1] = reference[1, 1] = 99  # a frame with itself does not count
    moving = np.zeros((FRAMES, TOKENS), bool)
    moving[:, :3] = True
    seen, true, strays = [], [], []
    for q in range(FRAMES):
        for k in range(FRAMES):
            for token in range(TOKENS):
                if q == k or np.isnan(reference[q, k, token, 0]):
                    continue
                if token < 3:
                    seen.append(flow[q, k, token])
                    true.append(reference[q, k, token])
                else:
                    strays.append(bool(flow[q, k, token].any()))
    distance = sum(math.dist(a, b) for a, b in zip(seen, true, strict=True))
    total = sum(math.hypot(*a) for a in (*seen, *true))
    found = score_block(flow, reference, moving)
    assert found.agreement == pytest.approx(1 - distance / total)
    assert found.correlation == pytest.approx(np.corrcoef(np.ravel(seen), np.ravel(true))[0, 1])
    assert found.stray == pytest.approx(sum(strays) / len(strays)) == pytest.approx(1 / 17)
    assert found.score == pytest.approx(found.agreement * 16 / 17)
    # several clips together: the second is perfect, so the agreement is larger
    both = score_block(*map(np.stack, ([flow, np.nan_to_num(reference)], [reference] * 2, [moving] * 2)))
    assert found.agreement < both.agreement < 1 and both.stray == pytest.approx(found.stray / 2)


def test_the_reference_itself_scores_1(flows):
    _, reference = flows
    found = score_block(np.nan_to_num(reference), reference, moving_tokens(reference))
    assert (found.correlation, found.agreement, found.stray) == (pytest.approx(1), 1, 0)


def test_what_cannot_be_compared_has_no_number(flows):
    flow, _ = flows
    still = np.zeros_like(flow)
    found = score_block(flow, still, moving_tokens(still))
    assert (found.correlation, found.agreement, found.score) == (None, None, None) and found.stray == 0.5
    everywhere = np.ones_like(flow) + np.arange(FRAMES)[:, None, None, None]
    found = score_block(everywhere, everywhere, moving_tokens(everywhere))
    assert (found.agreement, found.stray, found.score) == (1, None, 1)
    assert score_block(still, everywhere, moving_tokens(everywhere)).correlation is None


@pytest.mark.parametrize("background, stray", [(4, None), (6, 1)])
def test_a_few_tokens_are_no_background(background, stray):
    """Under a camera that moves, few tokens seem still, and by accident."""
    reference = np.ones((FRAMES, FRAMES, 100, 2))
    reference[:, :, :background] = 0
    found = score_block(np.ones_like(reference), reference, moving_tokens(reference))
    assert found.stray == stray and found.agreement == 1 and found.score == 1 - (stray or 0)


GOOD, NOISY, RESTLESS, BLIND = (
    BlockScore(0.9, 0.8, 0.05),
    BlockScore(0.6, 0.5, 0.1),
    BlockScore(0.95, 0.9, 0.97),
    BlockScore(0.1, 0.3, 0.0),
)


def test_the_best_mean_over_the_noise_levels_is_chosen():
    scores = {0: [BLIND, BLIND], 1: [GOOD, NOISY], 2: [GOOD, GOOD], 3: [RESTLESS, RESTLESS]}
    assert choose_block(scores, 0.1).block == 2
    assert choose_block({1: [NOISY], 3: [RESTLESS]}, 0.1).block == 1
    assert "its score, 0.76" in choose_block(scores, 0.1).why


@pytest.mark.parametrize(
    "scores, moving, why",
    [
        ({1: [GOOD]}, 0.001, "nothing moves: 0.1% of the tokens"),
        ({1: [BLIND], 2: [BlockScore(None, 0.0, 0.0)]}, 0.1, "block 1 correlates best, with 0.10"),
        ({1: [NOISY, BLIND]}, 0.1, "none sees this clip's motion"),  # by its mean
        ({0: [BLIND], 3: [RESTLESS]}, 0.1, "block 3 follows what moves, but its background moves too"),
    ],
)
def test_no_block_is_named_if_none_is_clear(scores, moving, why):
    choice = choose_block(scores, moving)
    assert choice.block is None and why in choice.why
