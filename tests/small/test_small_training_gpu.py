"""Training of the small models on a GPU: steps as CUDA graphs, batches drawn by other cores."""

import os

import pytest
import torch
from torch import nn

from ditflow.small.training import drawing
from ditflow.small.training.loop import Training, adam, averaged


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_replayed_steps_equal_launched_ones(tmp_path):
    """With batches of two sizes in turn."""

    def trained(replayed):
        torch.manual_seed(0)
        network = nn.Linear(3, 2).cuda()

        def loss(generator, inputs):
            noise = torch.randn(inputs.shape, generator=generator, device="cuda")
            return (network(inputs + 0.1 * noise) - inputs[:, :2] - 1).square().mean()

        def draw(step):
            return torch.randn(16 + 8 * (step % 2), 3, generator=torch.Generator().manual_seed(step))

        optimisers = [
            torch.optim.Muon([network.weight], lr=0.03, weight_decay=0.0),
            adam([network.bias], 0.03),
        ]
        training = Training(network, optimisers, loss, tmp_path / f"{replayed}.safetensors", draw)
        if not replayed:
            training.learn = lambda batch: training._learn(batch.cuda())
        training.run(steps=200, minutes=60.0)
        return averaged(training.checkpoint), training.recent

    (replayed, loss), (launched, same) = trained(True), trained(False)
    assert loss == pytest.approx(same, rel=1e-4)
    assert launched["bias"].min() > 0.5  # of 1
    for name, weights in launched.items():
        torch.testing.assert_close(replayed[name], weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cores", [1, 3])
def test_batches_for_a_gpu_come_in_order_from_other_cores(cores, monkeypatch):
    monkeypatch.setattr(drawing.os, "sched_getaffinity", lambda _: range(cores))
    numbers, here = range(3, 11), os.getpid()
    found = list(drawing.drawn(lambda n: (torch.tensor(n), os.getpid()), numbers, torch.device("cuda")))
    assert [int(number) for number, _ in found] == list(numbers)
    places = {place for _, place in found}
    assert places == {here} if cores == 1 else len(places - {here}) == cores - 1
