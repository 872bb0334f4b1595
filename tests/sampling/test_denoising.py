"""Another runner repeats a denoising step that failed, with the same result."""

import pytest
import torch
from tiny_models import random_inputs, settings_schedule, text_embeddings, tiny_backbone

from ditflow.memory.blockwise import BlockwiseRunner
from ditflow.memory.plain import PlainRunner
from ditflow.sampling.denoising import Denoising
from ditflow.settings import Settings


class OutOfMemory(PlainRunner):
    """Fails at the n-th forward or gradient."""

    def __init__(self, backbone, fails_at):
        super().__init__(backbone)
        self.left = fails_at

    def forward(self, *given):
        self._count()
        return super().forward(*given)

    def features(self, *given):
        self._count()
        return super().features(*given)

    def gradient(self, *given):
        self._count()
        return super().gradient(*given)

    def _count(self):
        self.left -= 1
        if not self.left:
            raise torch.OutOfMemoryError("planted")


@pytest.mark.parametrize("scheduler", ["ddim", "dpm"])
@pytest.mark.parametrize(
    "loss, optimise, x0_after, reference_noise",
    [
        ("flow", "latent", 1, "clean"),
        ("flow", "embedding", 1, "clean"),
        ("x0", "latent", 1, "clean"),
        ("flow", "latent", 0.5, "clean"),
        ("flow", "latent", 1, "step"),
    ],
)
def test_another_runner_continues_from_the_last_finished_step(
    loss, optimise, x0_after, reference_noise, scheduler
):
    backbone = tiny_backbone()
    inputs = random_inputs(backbone, 3, 8, 12)
    settings = Settings(
        model="small", dtype="float32", steps=5, guided=0.4, optimisation_steps=2, guidance_blocks=[2],
        loss=loss, optimise=optimise, x0_after=x0_after, scheduler=scheduler, guidance_scale=2,
        reference_noise=reference_noise,
    )  # fmt: skip
    texts = text_embeddings(inputs.prompt)

    def denoising(seen):
        return Denoising(settings, settings_schedule(settings), texts, inputs.latents, seen.append)

    whole = []
    expected = denoising(whole).run(PlainRunner(backbone))
    calls = OutOfMemory(backbone, 0)
    denoising([]).run(calls)
    for fails_at in range(1, -calls.left + 1):
        seen = []
        interrupted = denoising(seen)
        with pytest.raises(torch.OutOfMemoryError):
            interrupted.run(OutOfMemory(backbone, fails_at))
        found = interrupted.run(PlainRunner(backbone))
        assert torch.equal(found.latents, expected.latents)
        assert found.losses == expected.losses
        assert len(found.embeddings) == len(expected.embeddings)
        assert [step.index for step in seen] == [step.index for step in whole]


def test_the_other_runner_may_be_of_another_kind():
    backbone = tiny_backbone()
    inputs = random_inputs(backbone, 3, 8, 12)
    settings = Settings(model="small", steps=3, guided=0.7, optimisation_steps=2, guidance_blocks=[2])
    texts = text_embeddings(inputs.prompt)
    expected = Denoising(settings, settings_schedule(settings), texts, inputs.latents, lambda _: None).run(
        PlainRunner(backbone)
    )
    interrupted = Denoising(settings, settings_schedule(settings), texts, inputs.latents, lambda _: None)
    with pytest.raises(torch.OutOfMemoryError):
        interrupted.run(OutOfMemory(backbone, 4))
    found = interrupted.run(BlockwiseRunner(backbone))
    torch.testing.assert_close(found.latents, expected.latents, rtol=1e-5, atol=1e-5)
