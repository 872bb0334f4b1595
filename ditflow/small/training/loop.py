"""The training loop of every stage; a stopped training continues exactly where it was."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from ditflow.files import whole_or_absent
from ditflow.small.training.drawing import drawn
from ditflow.small.training.replay import Replayed, side_by_side

logger = logging.getLogger(__name__)

AVERAGE = 0.998  # share of the running average of weights that a step keeps
WARM_UP = 100  # steps
COOL_DOWN = 0.5  # share of the steps, at the end, in which learning rates fall to zero
SAVE_EVERY, LOG_EVERY = 120.0, 20.0  # seconds

# (generator, batch if there is one) -> loss; random numbers come from the generator, on its device
Loss = Callable[..., Tensor]
Draw = Callable[[int], Tensor]  # the batch of a step, on the CPU


class Training:
    """A network in training: its weights and their average, optimisers, random numbers and time spent.

    The checkpoint holds all of this, and is loaded on construction if it exists. The optimisers must not use
    weight decay: a step at a lower learning rate is made as a fraction of a step at the full one.
    """

    def __init__(
        self,
        network: nn.Module,
        optimisers: Sequence[Optimizer],
        loss: Loss,
        checkpoint: Path,
        draw: Draw | None = None,
        seed: int = 0,
    ):
        self.network, self.optimisers, self.loss = network, optimisers, loss
        self.checkpoint, self.draw = checkpoint, draw
        self.weights = list(network.parameters())
        self.average = {name: weights.detach().clone() for name, weights in network.named_parameters()}
        self.device = self.weights[0].device
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.rate, self.gain = torch.ones((), device=self.device), torch.ones((), device=self.device)
        self.learn = Replayed(self._learn, self.generator) if self.device.type == "cuda" else self._learn
        self.step, self.seconds, self.recent = 0, 0.0, float("nan")
        if checkpoint.is_file():
            self._restore()

    def run(self, steps: int, minutes: float) -> None:
        """Train up to `steps` steps in total, or for `minutes` in this call."""
        saved = logged = last = began = time.monotonic()
        losses = []
        self.network.train()
        batches = self._batches(steps)
        while self.step < steps and last - began < 60 * minutes:
            losses.append(self._advance(self.step / steps, *next(batches)))
            now = time.monotonic()
            self.seconds, last = self.seconds + now - last, now
            if now - logged > LOG_EVERY:
                self._log(losses)
                losses, logged = [], now
            if now - saved > SAVE_EVERY:
                self.save()
                saved = now
        if losses:
            self._log(losses)
        self.save()

    def _batches(self, steps: int) -> Iterator[tuple[Tensor, ...]]:
        if self.draw is None:
            return repeat(())
        return ((batch,) for batch in drawn(self.draw, range(self.step, steps), self.device))

    def _advance(self, progress: float, *batch: Tensor) -> Tensor:
        """Make a step; `progress` is the share of the steps already made."""
        self.rate.fill_(min(1.0, (self.step + 1) / WARM_UP, (1 - progress) / COOL_DOWN))
        self.step += 1
        self.gain.fill_(1 - min(AVERAGE, self.step / (self.step + 10)))
        return self.learn(*batch)

    def _learn(self, *batch: Tensor) -> Tensor:
        """A step's work on the device; does not wait for it."""
        loss = self.loss(self.generator, *batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        before = [weights.detach().clone() for weights in self.weights]
        side_by_side([optimiser.step for optimiser in self.optimisers], self.device)
        self.network.zero_grad()
        with torch.no_grad():
            _approach(before, self.weights, self.rate)
            torch._foreach_copy_(self.weights, before)
            _approach(list(self.average.values()), self.weights, self.gain)
        return loss.detach()

    def _log(self, losses: list[Tensor]) -> None:
        self.recent = float(torch.stack(losses).mean())
        minutes = self.seconds / 60
        logger.info("%s: step %d, %.1f min, loss %.4f", self.checkpoint.stem, self.step, minutes, self.recent)

    def save(self) -> None:
        """Write the checkpoint, complete or not at all."""
        tensors = {f"network.{name}": weights for name, weights in self.network.named_parameters()}
        tensors |= {f"average.{name}": weights for name, weights in self.average.items()}
        for number, optimiser in enumerate(self.optimisers):
            for index, state in optimiser.state_dict()["state"].items():
                tensors |= {f"optimiser.{number}.{index}.{key}": value for key, value in state.items()}
        tensors[self._generator_name] = self.generator.get_state()
        tensors = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        facts = {"step": self.step, "seconds": self.seconds, "loss": self.recent}
        with whole_or_absent(self.checkpoint) as unfinished:
            save_file(tensors, unfinished, {name: str(value) for name, value in facts.items()})

    @property
    def _generator_name(self) -> str:
        return f"generator.{self.device.type}"

    def _restore(self) -> None:
        with safe_open(self.checkpoint, "pt") as file, torch.no_grad():
            facts = file.metadata()
            for name, weights in self.network.named_parameters():
                weights.copy_(file.get_tensor(f"network.{name}"))
                self.average[name].copy_(file.get_tensor(f"average.{name}"))
            states: list[dict] = [{} for _ in self.optimisers]
            for name in file.keys():  # noqa: SIM118 - no dictionary
                if name.startswith("optimiser."):
                    _, number, index, key = name.split(".")
                    states[int(number)].setdefault(int(index), {})[key] = file.get_tensor(name)
            if self._generator_name in file.keys():  # noqa: SIM118 - no dictionary
                self.generator.set_state(file.get_tensor(self._generator_name))
            else:  # the checkpoint is from another kind of device
                self.generator.manual_seed(int(facts["step"]))
        for optimiser, state in zip(self.optimisers, states, strict=True):
            optimiser.load_state_dict(optimiser.state_dict() | {"state": state})
        self.step, self.seconds = int(facts["step"]), float(facts["seconds"])
        self.recent = float(facts["loss"])


def adam(weights: Iterable[nn.Parameter], rate: float) -> Optimizer:
    weights = list(weights)
    # keeps the step count on the GPU, so that a CUDA graph can contain a step
    capturable = weights[0].is_cuda
    return torch.optim.AdamW(weights, rate, betas=(0.9, 0.99), weight_decay=0.0, capturable=capturable)


def _approach(tensors: Sequence[Tensor], goals: Sequence[Tensor], share: Tensor) -> None:
    """Move each tensor towards its goal, in place, by this share of the difference."""
    differences = torch._foreach_sub(goals, tensors)
    torch._foreach_mul_(differences, share)
    torch._foreach_add_(tensors, differences)


def averaged(checkpoint: Path) -> dict[str, Tensor]:
    """The averaged weights of a checkpoint, which are the ones to use."""
    with safe_open(checkpoint, "pt") as file:
        names = [name for name in file.keys() if name.startswith("average.")]  # noqa: SIM118 - no dictionary
        return {name.removeprefix("average."): file.get_tensor(name) for name in names}


def progress_of(checkpoint: Path) -> dict[str, float]:
    """The progress of a checkpoint: `step`, `seconds` spent, and the recent mean `loss`."""
    with safe_open(checkpoint, "pt") as file:
        facts = file.metadata()
    return {
        "step": int(facts["step"]),
        "seconds": round(float(facts["seconds"])),
        "loss": float(facts["loss"]),
    }
