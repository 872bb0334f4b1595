"""The split into training data and data held out for evaluation."""

from collections.abc import Iterable, Iterator

from ditflow.small.clips import MadeClip, made_clip
from ditflow.small.vocabulary import COLOURS, SHAPES, caption

TRAINING_SEEDS = range(10_000, 30_000)
HELD_OUT_SEEDS = range(1_000)  # of clips that are never trained on


def held_out_prompts() -> list[tuple[str, str, str]]:
    """24 triples of colour, shape and background; clips with these captions are never trained on.

    Each shape occurs eight times; each colour occurs two or three times as colour and as background.
    """
    names = list(COLOURS)
    prompts = []
    for index in range(24):
        row, column = divmod(index, len(names))
        background = names[(column + 2 + 3 * row) % len(names)]
        prompts.append((names[column], SHAPES[(column + row) % len(SHAPES)], background))
    return prompts


HELD_OUT_CAPTIONS = frozenset(caption(colour, shape, back) for colour, shape, back in held_out_prompts())


def training_clips(seeds: Iterable[int] = TRAINING_SEEDS, painted: slice = slice(None)) -> Iterator[MadeClip]:
    """Yield the clips of these seeds whose captions are not held out; `painted` selects frames to draw."""
    for seed in seeds:
        clip = made_clip(seed, painted=painted)
        if clip.caption not in HELD_OUT_CAPTIONS:
            yield clip
