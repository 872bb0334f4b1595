"""The sincos model paints both colours of held-out prompts.

`test_motion_transfers.py` checks the rope model.
"""

import torch

from ditflow.evaluation.made_shapes import prompt_match
from ditflow.small.quality import __main__ as quality
from ditflow.small.training.split import held_out_prompts
from ditflow.small.vocabulary import caption


def test_colours_follow_the_prompt(monkeypatch):
    prompts = held_out_prompts()[:2]
    monkeypatch.setattr(quality, "held_out_prompts", lambda: prompts)
    videos = quality.sample(quality.ModelFolder("small-sincos", "float32", torch.device("cpu")))
    found = [prompt_match(video, caption(*prompt)) for video, prompt in zip(videos, prompts, strict=True)]
    assert sum(each["colour"] + each["background"] for each in found) >= 3  # of 4; by chance about 0.5
