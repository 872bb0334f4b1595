"""Train the small models from scratch, on a CPU or a GPU: `python -m ditflow.small.train [STAGE ...]`."""

from __future__ import annotations

import argparse
import logging
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ditflow.errors import DitflowError
from ditflow.files import cache_folder

if TYPE_CHECKING:
    from ditflow.small.training.loop import Training

STAGES = {  # steps
    **{"vae": 1_500, "decoder": 3_800, "rope": 6_000, "sincos": 2_500, "tracking": 500},
    **{"wan-vae": 1_300, "wan": 24_000, "wan-tracking": 400},
}
MODELS = {
    "rope": "rope",
    "sincos": "sincos",
    "tracking": "rope",
    "wan": "wan",
    "wan-tracking": "wan",
}  # transformer stage: its model


def main(arguments: list[str] | None = None) -> int:
    """Train the given stages (default: all), continuing from their checkpoints."""
    parser = argparse.ArgumentParser(prog="python -m ditflow.small.train", description=main.__doc__)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(STAGES)} (default: all)")
    parser.add_argument(
        "--minutes",
        type=float,
        default=math.inf,
        help="time limit of each stage, which the next call continues (default: no limit)",
    )
    parser.add_argument(
        "--checkpoints",
        type=Path,
        default=cache_folder() / "training",
        help="folder of the checkpoints (default %(default)s)",
    )
    parser.add_argument(
        "--export",
        type=Path,
        metavar="FOLDER",
        help="then write the trained models to FOLDER/rope, FOLDER/sincos and FOLDER/wan",
    )
    parser.add_argument(
        "--from-shipped", action="store_true", help="without a checkpoint, start from the shipped models"
    )
    choice = parser.parse_args(arguments)
    unknown = set(choice.stages) - set(STAGES)
    if unknown:
        parser.error(f"stage {min(unknown)!r}: give one of {', '.join(STAGES)}")

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        if choice.from_shipped:
            from ditflow.small.training.shipped import adopt_shipped

            adopt_shipped(choice.checkpoints)
        stages = choice.stages or list(STAGES)
        for name in stages:
            training = _training(name, choice.checkpoints)
            if training.step < STAGES[name]:
                _check_no_later_stage(name, choice.checkpoints)
            training.run(STAGES[name], choice.minutes)
        if choice.export:
            from ditflow.small.training.export import export, write_record

            for style in dict.fromkeys(MODELS[name] for name in stages if name in MODELS):
                export(style, choice.checkpoints, choice.export / style)
            write_record(choice.checkpoints, STAGES, choice.export)
    except DitflowError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _check_no_later_stage(stage: str, checkpoints: Path) -> None:
    """Raise DitflowError if a later stage has started from this one's weights."""
    for later, model in MODELS.items():
        checkpoint = checkpoints / f"{later}.safetensors"
        if later != stage == model and checkpoint.is_file():
            raise DitflowError(
                f"{checkpoint} started from the present `{stage}`: remove it to train `{stage}` further"
            )


def _training(stage: str, checkpoints: Path) -> Training:
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if stage in ("vae", "decoder"):
        from ditflow.small.training.autoencoder import autoencoder_training, decoder_training

        return (autoencoder_training if stage == "vae" else decoder_training)(checkpoints, device)

    if stage == "tracking":
        from ditflow.small.training.tracking import tracking_training

        return tracking_training(checkpoints, device)

    if stage == "wan-vae":
        from ditflow.small.training.wan_autoencoder import wan_autoencoder_training

        return wan_autoencoder_training(checkpoints, device)

    if stage == "wan":
        from ditflow.small.training.wan_transformer import wan_training

        return wan_training(checkpoints, device)

    if stage == "wan-tracking":
        from ditflow.small.training.wan_tracking import wan_tracking_training

        return wan_tracking_training(checkpoints, device)

    from ditflow.small.training.transformer import transformer_training

    return transformer_training(stage, checkpoints, device)


if __name__ == "__main__":
    sys.exit(main())
