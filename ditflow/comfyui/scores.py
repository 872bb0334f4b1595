"""The node that scores a finished run."""

from __future__ import annotations

import math

from comfy_api.latest import io, ui

from ditflow.comfyui.model import make_room
from ditflow.comfyui.sockets import CATEGORY, KeptRun, Run


class Evaluate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DitflowEvaluate",
            display_name="DiTFlow: Evaluate",
            category=CATEGORY,
            description="How well a result follows its motion and its prompt.",
            inputs=[
                Run.Input("run"),
                io.Combo.Input(
                    "tracker",
                    options=["none", "lk", "cotracker"],
                    default="none",
                    tooltip="also score point tracks",
                ),
                io.String.Input(
                    "clip_model",
                    default="auto",
                    tooltip="CLIP for the prompt: a hub id, a folder, none, or auto (if it is on disk)",
                ),
            ],
            outputs=[
                io.Float.Output(
                    display_name="motion_fidelity",
                    tooltip="1: every direction is right. Of a drawn or masked motion: to what was asked. "
                    "NaN if too little can be compared.",
                ),
                io.String.Output(display_name="scores"),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, run: KeptRun, tracker: str, clip_model: str) -> io.NodeOutput:
        from ditflow.evaluation.evaluate import evaluate
        from ditflow.evaluation.tables import NUMBERS

        make_room()
        (found,) = evaluate(run.folder, tracker=tracker, clip=clip_model)
        numbers = {name: number(found) for name, number in NUMBERS.items()}
        asked = numbers["target"] if found["target"] else numbers["motion"]
        text = "\n".join(f"{name}: {value:.3f}" for name, value in numbers.items() if value is not None)
        return io.NodeOutput(math.nan if asked is None else asked, text, ui=ui.PreviewText(text))
