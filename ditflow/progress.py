"""Progress reports of a running job, silent by default; `cli.screen` shows them on a terminal."""

from __future__ import annotations

import logging
from typing import Self


def quieten_libraries() -> None:
    """Silence the libraries' warnings and progress bars; only their errors are shown.

    What diffusers and transformers warn of is checked by `ditflow.models.tensors` and `ditflow.schema`. The
    hub's client warns of retries; a download that fails in the end is an error.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it logs when diffusers imports it
    import diffusers
    import huggingface_hub
    import transformers

    for library in (diffusers, huggingface_hub, transformers):
        library.utils.logging.set_verbosity_error()
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()


class Progress:
    """Receives phases and steps and ignores them. Subclasses show them."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        return None

    def phase(self, name: str, steps: int = 0) -> None:
        """Start a phase; `steps` is 0 if they cannot be counted."""

    def step(self, detail: str) -> None:
        """Finish one step of the phase."""
