"""Each operation's launchers with example arguments, listed once."""

import torch
from compiling import Case

from ditflow_kernels.qk_norm_rope.layout import Wanted
from ditflow_kernels.qk_norm_rope.triton import qk_norm_rope_backward, qk_norm_rope_forward

TEXT = 226  # tokens of a prompt


def cases() -> list[Case]:
    return qk_norm_rope_cases()


def qk_norm_rope_cases() -> list[Case]:
    """5B with its 24 frames; 2B, which has no rotation; float32 with wide heads."""
    big = {"heads": 48, "head_dim": 64, "dtype": torch.bfloat16}
    small = {"heads": 30, "head_dim": 64, "dtype": torch.float16, "rotary": False}
    exact = {"heads": 12, "head_dim": 128, "dtype": torch.float32}
    return [
        Case("preparation-5b", lambda: prepare(**big)),
        Case("preparation-5b-embedding", lambda: prepare(**big, embedding=True)),
        Case("preparation-2b", lambda: prepare(**small)),
        Case("preparation-float32", lambda: prepare(**exact, embedding=True)),
    ]


def prepare(heads, head_dim, dtype, rotary=True, embedding=False):
    video = 6 * 30 * 45
    query, key, grad_query, grad_key = torch.empty(4, 1, TEXT + video, heads, head_dim, dtype=dtype)
    norm = torch.empty(head_dim, dtype=dtype), torch.empty(head_dim, dtype=dtype), 1e-6
    rope = torch.empty(2, 2, video, head_dim) if rotary else None
    given = query, key, norm, norm, rope, TEXT
    qk_norm_rope_forward(*given)
    qk_norm_rope_backward(grad_query, grad_key, *given, Wanted(query=True, key=True, rope=embedding))
