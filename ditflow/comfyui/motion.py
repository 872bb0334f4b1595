"""The nodes that choose a motion."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from comfy_api.latest import io
from torch import Tensor

from ditflow.comfyui.pictures import frames_of, mask_frames_of
from ditflow.comfyui.sockets import CATEGORY, GivenMotion, Motion
from ditflow.errors import SettingsError
from ditflow.limits import FASTEST
from ditflow.video import Clip

DRAWING = """objects:
  - shape: ellipse
    path:
      - {time: 0, center: [0.2, 0.5], size: [0.25, 0.35]}
      - {time: 1, center: [0.8, 0.5], size: [0.25, 0.35]}
"""


class MotionFromClip(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DitflowMotionFromClip",
            display_name="DiTFlow: Motion from Clip",
            category=CATEGORY,
            description="The motion of a clip: of everything in it, unless a mask is joined to it.",
            inputs=[
                io.Image.Input("images", tooltip="The clip's frames. The first ones are used."),
                io.Float.Input("fps", default=8.0, min=0.1, max=float(FASTEST), step=0.1),
            ],
            outputs=[Motion.Output(display_name="motion")],
        )

    @classmethod
    def execute(cls, images: Tensor, fps: float) -> io.NodeOutput:
        rate = Fraction(fps).limit_denominator(1 << 16)
        return io.NodeOutput(GivenMotion(Clip(frames_of(images), rate)))


class MotionFromMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DitflowMotionFromMask",
            display_name="DiTFlow: Motion from Mask",
            category=CATEGORY,
            description="Only the motion of a part of the clip.",
            inputs=[
                Motion.Input("motion", tooltip="a clip's"),
                io.MultiType.Input(
                    "mask",
                    types=[io.Mask, io.Image],
                    tooltip="White where the clip's motion counts: a mask for each frame of the clip, or one "
                    "for its first frame, which is then followed.",
                ),
                io.Boolean.Input("invert", default=False, tooltip="what is black counts instead"),
            ],
            outputs=[Motion.Output(display_name="masked")],
        )

    @classmethod
    def execute(cls, motion: GivenMotion, mask: Tensor, invert: bool) -> io.NodeOutput:
        if motion.clip is None:
            raise SettingsError("mask: this motion has no clip; join it to a motion from a clip")
        return io.NodeOutput(replace(motion, mask=mask_frames_of(mask), mask_invert=invert))


class MotionFromDrawing(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DitflowMotionFromDrawing",
            display_name="DiTFlow: Motion from Drawing",
            category=CATEGORY,
            description="A motion drawn by hand: paths of objects and of the camera, as YAML.",
            inputs=[
                io.String.Input(
                    "drawing",
                    multiline=True,
                    default=DRAWING,
                    tooltip="Times from 0 to 1; places and sizes as shares of the frame, from its top left "
                    "corner.",
                ),
                Motion.Input("motion", optional=True, tooltip="a clip's, which the drawing lies over"),
            ],
            outputs=[Motion.Output(display_name="drawn")],
        )

    @classmethod
    def execute(cls, drawing: str, motion: GivenMotion | None = None) -> io.NodeOutput:
        if not drawing.strip():
            raise SettingsError("drawing: nothing given; draw a path of an object or of the camera")
        return io.NodeOutput(replace(motion or GivenMotion(), drawing=drawing))
