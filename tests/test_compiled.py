"""The guided forward as one graph: torch.compile passes through the model, the tap and the loss."""

from dataclasses import replace

import pytest
import torch
from conftest import tiny_transformer
from test_backbone import random_inputs

from ditflow.backbone.cogvideox import CogVideoX
from ditflow.backbone.runner import Grid, Until
from ditflow.guidance.losses import FlowLoss
from ditflow.memory.plain import PlainRunner
from ditflow.settings import Settings


@pytest.mark.parametrize("rotary", [True, False], ids=["rotary", "additive"])
def test_tapped_forward_and_loss_have_no_graph_break(rotary):
    backbone = CogVideoX(tiny_transformer(rotary))
    runner, until = PlainRunner(backbone), Until("query_key", (1, 2))
    inputs = random_inputs(backbone, 3, 8, 12)
    clip = runner.features(random_inputs(backbone, 3, 8, 12), {}, until)
    loss = FlowLoss(clip, Grid(3, 4, 6), Settings(model="small"))

    def guided(latents):
        read = runner.read(replace(inputs, latents=latents), {}, until)
        values = [loss(block, tokens) for block, tokens in read.items()]
        return torch.stack(values).mean()

    compiled = torch.compile(guided, fullgraph=True, backend="aot_eager")
    expected, expected_gradient = runner.gradient(loss, "latents", inputs, {}, until, 1.0)
    latents = inputs.latents.clone().requires_grad_()
    value = compiled(latents)
    torch.testing.assert_close(value.detach(), expected)
    torch.testing.assert_close(torch.autograd.grad(value, latents)[0], expected_gradient)
