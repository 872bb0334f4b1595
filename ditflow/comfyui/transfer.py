"""The nodes that make videos."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from comfy_api.latest import io

from ditflow.comfyui.model import HeldModel
from ditflow.comfyui.pictures import images_of, latents_of
from ditflow.comfyui.runs import motion_settings, place_of, result_of
from ditflow.comfyui.sockets import (
    CATEGORY,
    GivenMotion,
    KeptRun,
    Model,
    Motion,
    Run,
    more_settings,
    read_more,
)
from ditflow.errors import SettingsError
from ditflow.limits import SIDE, SOURCE_FRAMES
from ditflow.video import Clip

if TYPE_CHECKING:
    from ditflow.comfyui.runs import Begin
    from ditflow.jobs.session import Result, Session

LARGEST_SEED = 2**63 - 1


class Transfer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        own = "0: as the model's published settings"
        return io.Schema(
            node_id="DitflowTransfer",
            display_name="DiTFlow: Transfer",
            category=CATEGORY,
            description="A new video with the chosen motion and the prompt's content. If it is interrupted, "
            "queue it again with the same inputs: it goes on after its last finished step.",
            inputs=[
                Model.Input("model"),
                Motion.Input("motion"),
                _prompt(),
                io.Int.Input("frames", default=0, min=0, max=SOURCE_FRAMES, tooltip=own),
                io.Int.Input("width", default=0, min=0, max=SIDE, step=16, tooltip=own),
                io.Int.Input("height", default=0, min=0, max=SIDE, step=16, tooltip=own),
                io.Int.Input("steps", default=0, min=0, max=1000, tooltip=f"denoising steps; {own}"),
                _seed(),
                io.Combo.Input(
                    "optimise",
                    options=["latent", "embedding"],
                    default="latent",
                    tooltip="What is optimised. An embedding can be used by Inject with other prompts.",
                ),
                more_settings(),
            ],
            outputs=_outputs(),
        )

    @classmethod
    def execute(
        cls,
        model: HeldModel,
        motion: GivenMotion,
        prompt: str,
        frames: int,
        width: int,
        height: int,
        steps: int,
        seed: int,
        optimise: str,
        settings: str = "",
    ) -> io.NodeOutput:
        if bool(width) != bool(height):
            raise SettingsError(f"width {width}, height {height}: give both, or 0 for both")
        given = {"frames": frames or None, "steps": steps or None, "seed": seed, "optimise": optimise}
        given |= {"size": f"{width}x{height}" if width else None} | read_more(settings)
        place = place_of(model, prompt, given, motion.digest)
        chosen = motion_settings(motion, place)

        def begin(session: Session) -> Begin:
            return partial(session.transfer, motion.clip, prompt, **given, **chosen)

        return _output(result_of(model, place, begin), motion.clip)


class Inject(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DitflowInject",
            display_name="DiTFlow: Inject",
            category=CATEGORY,
            description="The motion of a finished transfer with another prompt. Nothing is optimised.",
            inputs=[
                Model.Input("model"),
                Run.Input("run", tooltip="of a transfer that has optimised its embedding, with this model"),
                _prompt(),
                _seed(),
                more_settings(),
            ],
            outputs=_outputs(),
        )

    @classmethod
    def execute(
        cls, model: HeldModel, run: KeptRun, prompt: str, seed: int, settings: str = ""
    ) -> io.NodeOutput:
        given = {"seed": seed, **read_more(settings)}
        place = place_of(model, prompt, given, run.folder)

        def begin(session: Session) -> Begin:
            return partial(session.inject, run.folder, prompt, clip=run.clip, **given)

        return _output(result_of(model, place, begin), run.clip)


def _prompt() -> io.String.Input:
    return io.String.Input("prompt", multiline=True, tooltip="what the new video shows")


def _seed() -> io.Int.Input:
    return io.Int.Input("seed", default=1, min=0, max=LARGEST_SEED, control_after_generate=True)


def _outputs() -> list[io.Output]:
    return [
        io.Image.Output(display_name="images"),
        io.Float.Output(display_name="fps"),
        io.Latent.Output(
            display_name="latents",
            tooltip="as the model's transformer sees them, scaled; not for ComfyUI's VAE nodes",
        ),
        Run.Output(display_name="run"),
    ]


def _output(result: Result, clip: Clip | None) -> io.NodeOutput:
    fps, run = float(result.frame_rate), KeptRun(result.folder, clip)
    return io.NodeOutput(images_of(result.frames), fps, latents_of(result.latents), run)
