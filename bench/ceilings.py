"""A device's ceilings, for `ditflow plan --device NAME`: `python -m bench.ceilings NAME [--cpu]`.

Written to `configs/devices/`: the best of several rounds of what a block of CogVideoX-5B does at 24 frames.
The product of its feed-forward, its attention, the copy of its weights from host memory (pinned, on a GPU).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml

from bench.revision import commit

ROUNDS = 8
TOKENS, HEADS, HEAD_DIM = 8326, 48, 64  # 24 frames of 480 x 720, and the text
CHANNELS = HEADS * HEAD_DIM
BLOCK_BYTES = 252 << 20
DTYPE = torch.bfloat16
FOLDER = Path(__file__).parents[1] / "configs" / "devices"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", help="the device's name, as `ditflow plan --device` will take it")
    parser.add_argument("--cpu", action="store_true", help="measure the CPU, although there is a GPU")
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available() and not options.cpu
    found = measure(torch.device("cuda" if on_gpu else "cpu"))
    path = FOLDER / f"{options.name}.yaml"
    path.write_text(
        yaml.safe_dump({"device": options.name, "measured": provenance(), **found}, sort_keys=False)
    )
    print(path.read_text(), end="")


def measure(device: torch.device, tokens: int = TOKENS, heads: int = HEADS) -> dict[str, Any]:
    """Products' and attention's FLOPs a second, and bytes a second from host memory."""
    channels = heads * HEAD_DIM
    rows = torch.randn(tokens, channels, dtype=DTYPE, device=device)
    weight = torch.randn(channels, 4 * channels, dtype=DTYPE, device=device)
    query, key, value = torch.randn(3, 1, heads, tokens, HEAD_DIM, dtype=DTYPE, device=device)
    host = torch.zeros(BLOCK_BYTES, dtype=torch.uint8, pin_memory=device.type == "cuda")
    block = torch.zeros(BLOCK_BYTES, dtype=torch.uint8, device=device)
    product = best_seconds(lambda: rows @ weight, device)
    attention = best_seconds(lambda: F.scaled_dot_product_attention(query, key, value), device)
    copy = best_seconds(lambda: block.copy_(host, non_blocking=True), device)
    return {
        "dtype": str(DTYPE).removeprefix("torch."),
        "product_flops": float(f"{2 * tokens * 4 * channels**2 / product:.4g}"),
        "attention_flops": float(f"{4 * tokens**2 * channels / attention:.4g}"),
        "copied_bytes": float(f"{BLOCK_BYTES / copy:.4g}"),
    }


def best_seconds(call: Callable[[], Any], device: torch.device) -> float:
    """The shortest of several rounds: a ceiling is what nothing disturbed."""
    times = []
    for _ in range(ROUNDS):
        synchronise(device)
        started = time.perf_counter()
        call()
        synchronise(device)
        times.append(time.perf_counter() - started)
    return min(times)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def provenance() -> str:
    """When, and with which code."""
    return f"{date.today()}, {commit()}, torch {torch.__version__}"


if __name__ == "__main__":
    main()
