"""Text, encode and decode: before and after the transformer. Of the autoencoder 2B and 5B have the same."""

from __future__ import annotations

from bench.gates.gate import FRAMES, MODELS, Gate, Metrics
from ditflow.planning.phases import Phases, Work
from ditflow.settings import Settings

TILES = ("none", "144x96")


def gates() -> dict[str, Gate]:
    return {f"coding/{FRAMES}": video, "coding/text": text}


def video() -> dict[str, Metrics]:
    phases, name = Phases(Settings(model="5b", frames=FRAMES)), f"coding/{FRAMES}"
    decoded = {f"{name}/decode-{tile}": metrics(phases.decode(tile)) for tile in TILES}
    return {f"{name}/encode": metrics(phases.encode()), **decoded}


def text() -> dict[str, Metrics]:
    return {f"coding/text/{model}": metrics(Phases(Settings(model=model)).text()) for model in MODELS}


def metrics(work: Work) -> Metrics:
    return {"flops": work.flops, "peak_bytes": work.peak_bytes}
