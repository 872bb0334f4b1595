"""Make the README's animated picture of what guidance does: `python -m ditflow.pages.showcase OUTPUT.gif`.

Each row shows a made clip, and two videos of the small model from the same noise and prompt: without guidance
and with it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ditflow.errors import DitflowError, SettingsError
from ditflow.evaluation.finished import FinishedRun
from ditflow.jobs.transfer import transfer
from ditflow.progress import quieten_libraries
from ditflow.settings import Settings
from ditflow.small.clips import FRAME_RATE, made_clip
from ditflow.video import Clip, write_clip

ROWS = (  # seed of the clip and of the noise, prompt
    (9, "a blue square on a white background"),
    (8, "a red circle on a green background"),
    (5, "a cyan square on a black background"),
)
SCALE, GAP, LETTER = 2, 8, 14  # pixels
INK, PAPER = (20, 20, 20), (240, 240, 240)


def main(arguments: list[str] | None = None) -> int:
    """Make the runs and write their videos side by side."""
    parser = argparse.ArgumentParser(prog="python -m ditflow.pages.showcase", description=main.__doc__)
    parser.add_argument("output", type=Path, help="the file to write, .gif or .mp4")
    choice = parser.parse_args(arguments)
    quieten_libraries()
    try:
        write_clip(make_showcase(), choice.output)
    except DitflowError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, SettingsError) else 1
    print(choice.output)
    return 0


def make_showcase() -> Clip:
    """Make all rows, one below the other."""
    rows = []
    for seed, prompt in ROWS:
        with tempfile.TemporaryDirectory() as folder:
            videos = make_videos(seed, prompt, Path(folder))
        steps = zip(*(video.frames for video in videos.values()), strict=True)
        rows.append(np.stack([_row(dict(zip(videos, pictures, strict=True)), prompt) for pictures in steps]))
    return Clip(np.concatenate(rows, axis=1), FRAME_RATE)


def make_videos(seed: int, prompt: str, folder: Path) -> dict[str, Clip]:
    """Make the runs of a row in `folder`; returns its columns."""
    source = folder / "clip.mp4"
    write_clip(Clip(made_clip(seed).frames, FRAME_RATE), source)
    guided = Settings(
        model="small", video=str(source), prompt=prompt, seed=seed, output=str(folder / "guided")
    )
    free = replace(guided, guidance=False, injection=False, output=str(folder / "free"))
    without, with_guidance = (FinishedRun.open(transfer(settings).folder) for settings in (free, guided))
    return {
        "clip": with_guidance.clip("reference"),
        "without guidance": without.clip("result"),
        "guided": with_guidance.clip("result"),
    }


def _row(pictures: dict[str, np.ndarray], prompt: str) -> np.ndarray:
    """One frame of a row [height, width, 3] uint8: named pictures side by side, the prompt above."""
    height, width = (SCALE * side for side in next(iter(pictures.values())).shape[:2])
    font = ImageFont.load_default(LETTER)
    line = LETTER + GAP
    sheet = Image.new("RGB", (len(pictures) * (width + GAP) + GAP, height + 2 * line + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP // 2), prompt, INK, font)
    for index, (name, picture) in enumerate(pictures.items()):
        left = GAP + index * (width + GAP)
        sheet.paste(Image.fromarray(picture).resize((width, height), Image.Resampling.NEAREST), (left, line))
        draw.text((left + width / 2, line + height + line / 2), name, INK, font, anchor="mm")
    return np.asarray(sheet)


if __name__ == "__main__":
    sys.exit(main())
