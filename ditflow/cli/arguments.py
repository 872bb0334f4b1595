"""The words of the command line: what may be said, and the settings that it makes."""

from __future__ import annotations

import argparse
import os
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, NoReturn, get_origin, get_type_hints

from ditflow.errors import SettingsError
from ditflow.files import inside
from ditflow.settings import Settings, read_settings
from ditflow.settings.yaml_file import check_output

USAGE = 2  # exit code
GROUPS = ("video", "model", "memory", "speed", "text", "motion", "sampling", "output")
FLOW_OPTIONS = ("source_prompt", "guidance_blocks", "temperature", "reference")
PLAN_OPTIONS = (
    *("frames", "size", "model", "dtype", "memory", "weights", "steps", "guidance_scale", "guidance", "loss"),
    *("optimise", "guided", "optimisation_steps", "guidance_blocks", "injection", "injection_blocks"),
)


class _Parser(argparse.ArgumentParser):
    """Argparse with one line for a wrong word in the place of the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"ditflow: {' '.join(message.split())}; `{self.prog} --help` shows what there is\n")


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="ditflow", description="Transfer the motion of a video to a new one, with CogVideoX."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    transfer = commands.add_parser("transfer", help="a video and a prompt in, a video with that motion out")
    inject = commands.add_parser("inject", help="reuse a run's embedding for another prompt: no optimisation")
    inject.add_argument(
        "--from", dest="origin", required=True, metavar="RUN", type=Path, help="run folder with an embedding"
    )
    resume = commands.add_parser("resume", help="go on with a run that was interrupted, from its last step")
    decode = commands.add_parser("decode", help="make a run's videos from its latents")
    for command in (resume, decode):
        command.add_argument("run", type=Path, metavar="RUN", help="folder of a transfer")
        command.add_argument("--memory", help="GPU memory to use, in place of what the run had")
        command.add_argument("--quiet", action="store_true", help="print only warnings and the run folder")
    flow = commands.add_parser("flow", help="the motion flow of a video, as pictures and as a file")
    plan = commands.add_parser("plan", help="memory and work of a run with each preset, before it runs")
    plan.add_argument("--json", action="store_true", help="print the plan as JSON")
    plan.add_argument(
        "--device", dest="device_name", metavar="NAME", help="estimate times on a measured device"
    )
    _add_evaluate(commands)
    report = commands.add_parser("report", help="finished runs as one page to look at")
    report.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a finished transfer")
    report.add_argument(
        "--output",
        type=Path,
        default=Path("report.html"),
        metavar="FILE",
        help="the page (default: report.html)",
    )
    doctor = commands.add_parser("doctor", help="what this machine has, to paste into a bug report")
    doctor.add_argument("--json", action="store_true", help="print the same as JSON")
    for command in (transfer, inject):
        _add_settings(command, [item for item in fields(Settings) if item.metadata["flag"]])
        command.add_argument(
            "--profile", metavar="steps=N", help="capture N guided and N plain steps (profiles/README.md)"
        )
    for command in (transfer, flow, plan):
        command.add_argument(
            "--config", type=Path, metavar="FILE", help="settings from a YAML file; flags win"
        )
    shown = [
        item
        for item in fields(Settings)
        if item.metadata["group"] in ("video", "model", "memory", "output") or item.name in FLOW_OPTIONS
    ]
    _add_settings(flow, [item for item in shown if item.name != "keep_precision"])
    _add_settings(plan, [item for item in fields(Settings) if item.name in PLAN_OPTIONS])
    for command in commands.choices.values():
        command.add_argument("--debug", action="store_true", help="show where in the program an error arose")
    return parser


def read_options(options: argparse.Namespace) -> Settings:
    """Settings from a file or an earlier run, then `--set`, then flags. Raises SettingsError."""
    given = {}
    for assignment in options.assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise SettingsError(f"--set {assignment}: expected KEY=VALUE")
        given[name.strip().replace("-", "_")] = value
    known = {item.name for item in fields(Settings)}
    given |= {name: value for name, value in vars(options).items() if name in known and value is not None}
    if options.command == "flow":
        given["injection"] = False  # any block may be looked at
    if options.command == "inject":
        given.setdefault("memory", "auto")  # the earlier run's choice was for its own moment
    if "memory" in given:  # and so is what an earlier run made of another
        given = {"preset": "auto", "decode_tile": "auto"} | given
    if options.command != "inject":
        settings = read_settings(options.config, **given)
        if options.config and not given.get("output"):
            check_output(options.config, settings.output)
        return settings
    origin = inside(options.origin, "settings.yaml")
    if not origin.is_file():
        raise SettingsError(f"--from {options.origin} is no run folder: it has no settings.yaml")
    given.setdefault("output", "")
    embedding = inside(options.origin, "embedding.safetensors")
    return read_settings(origin, **given, saved_embedding=os.path.realpath(embedding))


def _add_evaluate(commands: Any) -> None:
    command = commands.add_parser("evaluate", help="how well results follow their clips and prompts")
    command.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="folder of a finished transfer")
    command.add_argument("--video", type=Path, metavar="FILE", help="in place of runs: any video or folder")
    command.add_argument(
        "--reference", type=Path, metavar="FILE", help="the video whose motion it should have"
    )
    command.add_argument("--prompt", default="", metavar="TEXT", help="what the video should show")
    command.add_argument("--tracker", default="lk", help="lk (Lucas-Kanade, the default) or cotracker")
    command.add_argument(
        "--tracker-weights",
        type=Path,
        metavar="FILE",
        help="CoTracker3's scaled_offline.pth; default: the hub's",
    )
    command.add_argument(
        "--clip", default="auto", metavar="MODEL", help="CLIP by hub id or folder, auto (ViT-B/32) or none"
    )
    command.add_argument("--json", action="store_true", help="print the numbers as JSON")
    command.add_argument("--quiet", action="store_true", help="print only warnings and the numbers")


def _add_settings(command: argparse.ArgumentParser, items: list[Field]) -> None:
    """Flags for settings, grouped, and the ways to give settings that are no flags."""
    kinds = get_type_hints(Settings)
    for group in GROUPS:
        section = command.add_argument_group(group)
        for item in items:
            if item.metadata["group"] == group:
                section.add_argument(f"--{item.name.replace('_', '-')}", **_argument(item, kinds[item.name]))
    general = command.add_argument_group("general")
    general.add_argument(
        "--set",
        dest="assignments",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any setting by name",
    )
    general.add_argument(
        "--print-config", action="store_true", help="print every setting, resolved, and stop"
    )
    general.add_argument("--quiet", action="store_true", help="print only warnings and the run folder")


def _argument(item: Field, kind: Any) -> dict[str, Any]:
    """How argparse takes a setting; values stay words, which `Settings` reads and checks."""
    text = item.metadata["text"].replace("%", "%%")
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction, "default": None, "help": text}
    metavar = "{" + ",".join(item.metadata["choices"]) + "}" if item.metadata["choices"] else None
    if item.name == "lora":
        return {"action": "append", "metavar": "LORA", "help": text}
    if item.name == "learning_rate":
        return {"nargs": 2, "metavar": ("HIGH", "LOW"), "help": text}
    if get_origin(kind) is tuple:
        return {"nargs": "+", "metavar": "N", "help": text}
    return {"metavar": metavar or ("WxH" if item.name == "size" else item.name.upper()), "help": text}
