"""What ComfyUI loads: the nodes."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from ditflow.comfyui.model import LoadModel
from ditflow.comfyui.motion import MotionFromClip, MotionFromDrawing, MotionFromMask
from ditflow.comfyui.scores import Evaluate
from ditflow.comfyui.transfer import Inject, Transfer

NODES = [LoadModel, MotionFromClip, MotionFromMask, MotionFromDrawing, Transfer, Inject, Evaluate]


class DitflowExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> ComfyExtension:
    return DitflowExtension()
