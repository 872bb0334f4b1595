"""The scores of a model's blocks on one clip, as numbers and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np

from ditflow.guidance.block_scores import BlockScore, Choice, choose_block, moving_tokens, score_block

MEASURED, TRUE = "optical flow", "true motion"  # what blocks are compared with
LEGEND = (
    "r: correlation, agree: agreement, both over the tokens that move; stray: share of the background that "
    "points elsewhere; score: agree * (1 - stray), mean over the noise levels t"
)


@dataclass(frozen=True)
class Reference:
    """The scores of all blocks against one reference."""

    moving: float  # share of the tokens that move
    compared: float  # share of the pairs of a token and a frame for which the reference is known
    blocks: Mapping[int, Sequence[BlockScore]]  # of each block, one for each noise level

    def mean(self, block: int) -> float | None:
        """A block's mean score over the noise levels; None if nothing moves."""
        scores = [each.score for each in self.blocks[block]]
        return None if None in scores else fmean(scores)


@dataclass(frozen=True)
class Comparison:
    """What each block sees of a clip's motion at each noise level."""

    timesteps: Sequence[int]
    references: Mapping[str, Reference]  # MEASURED, and for a made clip TRUE
    choice: Choice  # by optical flow

    def as_mapping(self) -> dict[str, Any]:
        """The comparison for JSON."""
        references = {
            name: {
                "moving": found.moving,
                "compared": found.compared,
                "blocks": {
                    str(block): {
                        "score": found.mean(block),
                        "levels": [
                            {"timestep": timestep} | asdict(each) | {"score": each.score}
                            for timestep, each in zip(self.timesteps, scores, strict=True)
                        ],
                    }
                    for block, scores in found.blocks.items()
                },
            }
            for name, found in self.references.items()
        }
        return {"block": self.choice.block, "why": self.choice.why, "references": references}

    def as_text(self) -> str:
        """A Markdown table for each reference, and the block to guide."""
        parts = [part for name, found in self.references.items() for part in self._table(name, found)]
        chosen = "guide no block" if self.choice.block is None else f"guide block {self.choice.block}"
        return "\n".join([*parts, LEGEND, "", f"{chosen}: {self.choice.why}"])

    def _table(self, name: str, found: Reference) -> list[str]:
        shares = f"{found.moving:.1%} of the tokens move, {found.compared:.0%} of the pairs are known"
        head = [
            "block",
            *(title for t in self.timesteps for title in (f"t={t}: r", "agree", "stray")),
            "score",
        ]
        lines = [head, ["-" * (len(title) - 1) + ":" for title in head]]
        for block, scores in found.blocks.items():
            values = [value for each in scores for value in (each.correlation, each.agreement, each.stray)]
            lines.append([str(block), *map(_cell, [*values, found.mean(block)])])
        aligned = ([cell.rjust(len(title)) for title, cell in zip(head, line, strict=True)] for line in lines)
        return [f"Against the {name}: {shares}.", "", *(f"| {' | '.join(line)} |" for line in aligned), ""]


def compare(
    flows: Sequence[Mapping[int, np.ndarray]],  # of each noise level, by block
    references: Mapping[str, np.ndarray],  # MEASURED, perhaps TRUE; shapes as in `block_scores`
    timesteps: Sequence[int],
) -> Comparison:
    """Score each block against each reference, and choose one by the optical flow."""
    found = {}
    for name, reference in references.items():
        moving = moving_tokens(reference)
        pairs = ~np.eye(len(reference), dtype=bool)
        known = ~np.isnan(reference[pairs]).any(axis=-1)
        scores = {
            block: [score_block(level[block], reference, moving) for level in flows] for block in flows[0]
        }
        found[name] = Reference(float(moving.mean()), float(known.mean()), scores)
    measured = found[MEASURED]
    return Comparison(timesteps, found, choose_block(measured.blocks, measured.moving))


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
