"""Measure a trained small model: `python -m ditflow.small.quality FOLDER`."""

from __future__ import annotations

import argparse
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ditflow.errors import DitflowError
from ditflow.memory.plain import PlainRunner
from ditflow.models.loading import ModelFolder
from ditflow.models.protocols import Texts
from ditflow.sampling.denoising import Denoising
from ditflow.settings import Settings
from ditflow.small import SMALL_MODELS
from ditflow.small.clips import made_clip
from ditflow.small.quality.classifier import classify, train_classifier
from ditflow.small.quality.motion_reading import read_blocks, settings_of
from ditflow.small.sight import Sight, look
from ditflow.small.training.split import HELD_OUT_SEEDS, held_out_prompts, training_clips
from ditflow.small.vocabulary import caption

TEACHING_CLIPS = 300  # to train the classifier with
READ_CLIPS = 24
SHOWN = 6  # frames of each video on the sheet
TILE = "none"


def main(arguments: list[str] | None = None) -> int:
    """Sample the 24 held-out prompts (seeds 0 to 23), count what is right, and read motion in every block."""
    parser = argparse.ArgumentParser(prog="python -m ditflow.small.quality", description=main.__doc__)
    parser.add_argument("model", help=f"a pipeline folder, or {', '.join(SMALL_MODELS)}")
    parser.add_argument("--sheet", type=Path, metavar="FILE.png", help="also draw the videos, one row each")
    choice = parser.parse_args(arguments)
    try:
        folder = ModelFolder(choice.model, "float32", torch.device("cpu"))
        report_autoencoder(folder)
        videos = sample(folder)
        report(videos)
        report_blocks(folder)
    except DitflowError as error:
        print(error, file=sys.stderr)
        return 1
    if choice.sheet:
        rows = [np.hstack(list(video[:: len(video) // SHOWN])) for video in videos]
        Image.fromarray(np.vstack(rows)).save(choice.sheet)
    return 0


def sample(folder: ModelFolder) -> list[np.ndarray]:
    """A video [frames, height, width, 3] uint8 for each held-out prompt, without a reference clip."""
    runner, autoencoder = PlainRunner(folder.transformer()), folder.autoencoder()
    encoder, vae = folder.text_encoder(), folder.config("vae")
    videos = []
    for seed, prompt in enumerate(held_out_prompts()):
        settings = Settings(model=settings_of(folder), guidance=False, injection=False, seed=seed)
        words = encoder.encode(folder.tokenise([caption(*prompt), ""]))
        texts = Texts(words[:1], words[1:], words[1:])
        shape = folder.family.latent_shape(settings.frames, settings.size, vae)
        generator = torch.Generator().manual_seed(seed)
        schedule = folder.schedule(settings.scheduler, settings.steps, settings.size, generator)
        denoising = Denoising(settings, schedule, texts, None, lambda step: None, shape=shape)
        latents = denoising.run(runner).latents
        videos.append(autoencoder.decode(latents, settings.frames, TILE).numpy())
    return videos


def report_autoencoder(folder: ModelFolder) -> None:
    """Print how well held-out clips are reconstructed, and how smoothly they move then."""
    autoencoder, clips = (
        folder.autoencoder(),
        [made_clip(seed).frames for seed in HELD_OUT_SEEDS[:READ_CLIPS]],
    )
    latents = [autoencoder.encode(torch.from_numpy(clip)) for clip in clips]
    again = [autoencoder.decode(x, len(clip), TILE).numpy() for x, clip in zip(latents, clips, strict=True)]
    errors = [np.square(new - clip.astype(float)).mean() for new, clip in zip(again, clips, strict=True)]
    low, middle, high = np.percentile(10 * np.log10(255**2 / np.maximum(errors, 1e-9)), (0, 50, 100))
    smooth = _median_acceleration([look(video) for video in again])
    print(f"autoencoder          {middle:.1f} dB PSNR ({low:.1f} to {high:.1f}), acceleration {smooth:.3f}")


def report(videos: list[np.ndarray]) -> None:
    """Print how many videos of the held-out prompts are right, and how smoothly they move."""
    prompts, sights = held_out_prompts(), [look(video) for video in videos]
    network = train_classifier(islice(training_clips(), TEACHING_CLIPS))
    clips = [made_clip(seed) for seed in HELD_OUT_SEEDS[: len(videos)]]
    true_sights = [look(clip.frames) for clip in clips]
    known = sum(
        classify(network, sight) == clip.scene.shape for sight, clip in zip(true_sights, clips, strict=True)
    )
    pairs = list(zip(prompts, sights, strict=True))
    colours = sum((sight.colour, sight.background) == (colour, back) for (colour, _, back), sight in pairs)
    shapes = sum(classify(network, sight) == shape for (_, shape, _), sight in pairs)
    count = len(videos)
    print(f"both colours right   {colours} of {count}")
    print(f"one coherent object  {sum(sight.coherent for sight in sights)} of {count}")
    print(f"shape right          {shapes} of {count} (the classifier on held-out clips: {known} of {count})")
    ours, data = _median_acceleration(sights), _median_acceleration(true_sights)
    print(
        f"median acceleration  {ours:.3f} pixels/frame², {ours / data:.1f} x the held-out clips' {data:.3f}"
    )


def report_blocks(folder: ModelFolder) -> None:
    """Print how well each block reads the motion of held-out clips."""
    print("block  correlation  agreement  background tokens that seem to move")
    for block, read in enumerate(read_blocks(folder, map(made_clip, HELD_OUT_SEEDS[:READ_CLIPS]))):
        correlation = "-" if read.correlation is None else f"{read.correlation:.2f}"
        print(f"{block:5}  {correlation:>11}  {read.agreement:9.2f}  {read.stray:.0%}")


def _median_acceleration(sights: list[Sight]) -> float:
    return float(np.nanmedian(np.concatenate([sight.acceleration for sight in sights])))


if __name__ == "__main__":
    sys.exit(main())
