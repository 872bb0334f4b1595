"""Warnings about what the small models of this package cannot do."""

from __future__ import annotations

import logging

from ditflow.errors import shown
from ditflow.settings import Settings
from ditflow.small import SMALL_MODELS
from ditflow.small.vocabulary import COLOURS, SHAPES, caption, unknown_words

logger = logging.getLogger(__name__)

QUOTED = 300  # characters of unknown words that a warning shows


def warn_of_limits(settings: Settings, needs_gradient: bool) -> None:
    """Name words that a small model does not know, and a mode that does not work on it.

    The tokenizer spells unknown words, so that to the text encoder they are not unknown.
    """
    model = settings.model
    if model not in SMALL_MODELS:
        return
    prompts = settings.prompt, settings.negative_prompt, settings.source_prompt
    if unknown := unknown_words(" ".join(prompts)):
        logger.warning(
            "%s does not know: %s; it knows the colours %s and the shapes %s, as in: %s",
            *(model, shown(" ".join(unknown), QUOTED), ", ".join(COLOURS), ", ".join(SHAPES)),
            caption("red", "circle", "blue"),
        )
    if model == "small" and needs_gradient and settings.optimise == "embedding":
        logger.warning(
            "--optimise embedding does not work well on small: the motion is often wrong, and the picture "
            "has specks; use --model small-sincos, or --optimise latent"
        )
