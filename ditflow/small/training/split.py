"""What is trained on, and what is kept from training to judge by: fixed before any training."""

from collections.abc import Iterable, Iterator

from ditflow.small.clips import MadeClip, made_clip
from ditflow.small.vocabulary import COLOURS, SHAPES, caption

TRAINING_SEEDS = range(10_000, 30_000)
HELD_OUT_SEEDS = range(1_000)  # clips; training never draws from these


def held_out_prompts() -> list[tuple[str, str, str]]:
    """24 times colour, shape and background; no clip with such a caption is trained on.

    Every shape comes eight times, every colour two or three times on either side.
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
    """The clips to train on, in order: those of the seeds whose captions are not held out.

    `painted`: only these frames of each.
    """
    for seed in seeds:
        clip = made_clip(seed, painted=painted)
        if clip.caption not in HELD_OUT_CAPTIONS:
            yield clip
