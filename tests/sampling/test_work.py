"""The number of blocks that a run's forwards go through: counted, not timed."""

import torch
from tiny_models import DEPTH, BlockCalls, ddim_schedule, random_inputs, text_embeddings, tiny_backbone

from ditflow.guidance.injection import Injection
from ditflow.memory.plain import PlainRunner
from ditflow.sampling.loop import Scale, Step, denoise


def test_no_injection_runs_no_injection_pass(monkeypatch):
    runner = PlainRunner(tiny_backbone(layers=DEPTH))
    inputs = random_inputs(runner.transformer, 3, 8, 12)
    texts = text_embeddings(inputs.prompt)

    def blocks_run(injection):
        counts = BlockCalls(runner.transformer, monkeypatch)
        schedule = ddim_schedule(4)
        denoise(
            runner, schedule, Step(-1, inputs.latents, inputs.embedding, []), inputs.embedding, texts,
            Scale(3.0, False), 2, None, injection, None, lambda step: None,
        )  # fmt: skip
        monkeypatch.undo()
        return len(counts.prepared)

    injection = Injection((1,), torch.randn_like(inputs.latents), inputs.latents, inputs.embedding)
    forwards = 4 * 2 * DEPTH
    assert blocks_run(None) == forwards
    assert blocks_run(injection) == forwards + 2 * 1  # block 0; of block 1 only keys and values
