"""Measures the ceilings for `ditflow plan --estimate-on NAME`: `python -m bench.ceilings NAME [--cpu]`.

Writes `configs/devices/NAME.yaml`: the best of several rounds of what a block of CogVideoX-5B does at 24
frames. These are its feed-forward's product, in 16 and in 8 bits, its attention, and copies of its weights,
from host memory (pinned, on a GPU) and in device memory.
"""

import argparse
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml

from bench.harness import CPU, Call, commit, seconds
from ditflow_kernels.int8_linear.products import int8_product

ROUNDS = 8
TOKENS, HEADS, HEAD_DIM = 8326, 48, 64  # 24 frames of 720x480 and the text
BLOCK_BYTES = 252 << 20
DTYPE = torch.bfloat16
FOLDER = Path(__file__).parents[1] / "configs" / "devices"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", help="the device's name for `ditflow plan --estimate-on`")
    parser.add_argument("--cpu", action="store_true", help="measure the CPU even if there is a GPU")
    options = parser.parse_args()
    device = torch.device("cuda") if torch.cuda.is_available() and not options.cpu else CPU
    found = facts(device) | measure(device)
    path = FOLDER / f"{options.name}.yaml"
    provenance = f"{date.today()}, {commit()}, torch {torch.__version__}"
    path.write_text(
        yaml.safe_dump({"device": options.name, "measured": provenance, **found}, sort_keys=False)
    )
    print(path.read_text(), end="")


def facts(device: torch.device) -> dict[str, Any]:
    """A GPU's name and gigabytes of memory."""
    if device.type != "cuda":
        return {}
    found = torch.cuda.get_device_properties(device)
    return {"card": found.name, "gigabytes": round(found.total_memory / 2**30)}


def measure(device: torch.device, tokens: int = TOKENS, heads: int = HEADS) -> dict[str, Any]:
    """FLOPs a second of products and of attention; bytes a second from host memory and in device memory."""
    channels = heads * HEAD_DIM
    rows = torch.randn(tokens, channels, dtype=DTYPE, device=device)
    weight = torch.randn(channels, 4 * channels, dtype=DTYPE, device=device)
    query, key, value = torch.randn(3, 1, heads, tokens, HEAD_DIM, dtype=DTYPE, device=device)
    host = torch.zeros(BLOCK_BYTES, dtype=torch.uint8, pin_memory=device.type == "cuda")
    block, other = torch.zeros(2, BLOCK_BYTES, dtype=torch.uint8, device=device)
    left, right = rows.to(torch.int8), weight.to(torch.int8)

    def rate(work: float, call: Call) -> float:
        """In the best round, the one that nothing disturbed."""
        best = min(seconds(call, device=device) for _ in range(ROUNDS))
        return float(f"{work / best:.4g}")

    attend = partial(F.scaled_dot_product_attention, query, key, value)
    return {
        "dtype": str(DTYPE).removeprefix("torch."),
        "product_flops": rate(2 * tokens * 4 * channels**2, lambda: rows @ weight),
        "attention_flops": rate(4 * tokens**2 * channels, attend),
        "copied_bytes": rate(BLOCK_BYTES, lambda: block.copy_(host, non_blocking=True)),
        "int8_flops": rate(2 * tokens * 4 * channels**2, lambda: int8_product(left, right)),
        "moved_bytes": rate(2 * BLOCK_BYTES, lambda: block.copy_(other)),  # read and written
    }


if __name__ == "__main__":
    main()
