"""The arguments of every command, and the settings they make."""

from __future__ import annotations

import argparse
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from ditflow.app import command as app
from ditflow.batch.command import add_batch
from ditflow.cli.parser import Parser, Version, WithDefaults
from ditflow.comfyui import command as comfyui
from ditflow.errors import SettingsError, shown
from ditflow.files import shipped_names
from ditflow.settings import Settings, injection_settings, read_settings
from ditflow.settings.values import count, is_possible
from ditflow.settings.yaml_file import check_output

GROUPS = ("video", "model", "memory", "speed", "text", "motion", "target", "sampling", "output")
PREVIEW_EVERY = 5  # denoising steps
PAIRS = {"learning_rate": ("HIGH", "LOW"), "motion_shift": ("X", "Y")}
FLOW_OPTIONS = ("source_prompt", "guidance_blocks", "temperature", "rows", "reference", "seed")
PLAN_OPTIONS = (
    *("frames", "size", "model", "dtype", "memory", "weights", "compute", "steps", "guidance_scale"),
    *("guidance", "loss", "x0_after", "optimise", "guided", "optimisation_steps", "guidance_blocks"),
    *("reference_noise", "initial_latents", "motion"),
    *("injection", "injection_blocks", "speed", "attention", "attention_forward"),
    *("gradients", "gradient_reuse", "negative", "negative_below", "step_cache"),
)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="ditflow",
        description="Make a video that has the motion of a given clip and the content of a prompt.",
    )
    parser.add_argument("--version", action=Version, help="print the version and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_runs(commands)
    _add_plan(commands)
    _add_evaluate(commands)
    _add_report(commands)
    app.add_arguments(_add_command(commands, "app", "open a local page to make runs and look at them"))
    add_batch(_add_command(commands, "batch", "run many transfers, on all GPUs or on a Ray cluster"))
    explain = _add_command(commands, "explain", "say where the time of a profiled run's steps went")
    explain.add_argument("trace", type=_path, metavar="TRACE", help="trace.json.gz of a run with --profile")
    doctor = _add_command(commands, "doctor", "describe this machine and its packages, for a bug report")
    doctor.add_argument("--json", action="store_true", help="print the description as JSON")
    comfyui.add_arguments(_add_command(commands, "comfyui", "write the folder of the nodes for ComfyUI"))
    parser.commands = commands.choices
    for command in commands.choices.values():
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def read_options(options: argparse.Namespace) -> Settings:
    """Settings from a file or an earlier run, then `--set`, then flags; the later one wins.

    Raises SettingsError.
    """
    given = {}
    for assignment in options.assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise SettingsError(f"--set {assignment}: expected KEY=VALUE")
        given[name.strip().replace("-", "_")] = value
    known = {item.name for item in fields(Settings)}
    given |= {name: value for name, value in vars(options).items() if name in known and value is not None}
    if options.command == "flow":
        given["injection"] = False  # injection would exclude blocks that may be read
    if options.command == "inject":
        return injection_settings(options.origin, **given)
    if "memory" in given:  # so the earlier run's resolved choices no longer apply
        given = {"preset": "auto", "decode_tile": "auto"} | given
    settings = read_settings(options.config, **given)
    if options.config and not given.get("output"):
        check_output(options.config, settings.output)
    return settings


def _path(text: str) -> Path:
    """A path that the system can look up, whether it exists or not."""
    if "\0" in text or not is_possible(text):
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a possible path; shorten it")
    return Path(text)


def _add_command(
    commands: Any, name: str, text: str, formatter: type[argparse.HelpFormatter] = WithDefaults
) -> argparse.ArgumentParser:
    described = f"{text[0].upper()}{text[1:]}."
    return commands.add_parser(name, help=text, description=described, formatter_class=formatter)


def _add_continuing(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    """A command whose defaults are an earlier run's settings, not the general ones."""
    return _add_command(commands, name, text, argparse.HelpFormatter)


def _add_runs(commands: Any) -> None:
    """The commands that write a run folder or continue one."""
    flags = [item for item in fields(Settings) if item.metadata["flag"]]
    transfer = _add_command(commands, "transfer", "make a video with a clip's motion and a prompt's content")
    inject = _add_continuing(
        commands, "inject", "use the embedding of an earlier run with another prompt; nothing is optimised"
    )
    inject.description += " Settings that are not given are that run's, except --memory."
    inject.add_argument(
        "--from",
        dest="origin",
        required=True,
        metavar="RUN",
        type=_path,
        help="folder of a run with --optimise embedding",
    )
    for command in (transfer, inject):
        _add_settings(command, flags)
        command.add_argument(
            "--profile", metavar="steps=N", help="profile N guided and N plain steps (profiles/README.md)"
        )
        command.add_argument(
            "--preview",
            nargs="?",
            type=count,
            const=PREVIEW_EVERY,
            metavar="N",
            help="write preview.mp4 to the run folder after every N-th step, a small picture of the latents "
            f"(default: every {PREVIEW_EVERY})",
        )
    resume = _add_continuing(commands, "resume", "continue an interrupted run after its last finished step")
    decode = _add_continuing(commands, "decode", "make a run's videos again from its saved latents")
    for command in (resume, decode):
        command.add_argument("run", type=_path, metavar="RUN", help="folder of a transfer")
        command.add_argument("--memory", help="GPU memory to use instead of the run's setting")
    flow = _add_command(commands, "flow", "write the motion flow of a video as pictures and as a tensor file")
    _add_block_comparison(flow)
    groups = ("video", "model", "memory", "target", "output")
    shown = [item for item in flags if item.metadata["group"] in groups or item.name in FLOW_OPTIONS]
    _add_settings(flow, [item for item in shown if item.name != "keep_precision"])
    for command in (transfer, flow):
        _add_config(command)
    for command in (transfer, inject, resume, decode, flow):
        command.add_argument("--quiet", action="store_true", help="print only warnings and the run folder")


def _add_block_comparison(flow: argparse.ArgumentParser) -> None:
    section = flow.add_argument_group(
        "which block to guide",
        "With --blocks, nothing is drawn for --guidance-blocks. Each of these blocks is compared with the "
        "clip's optical flow instead, and the one to give to --guidance-blocks is named.",
    )
    section.add_argument(
        "--blocks", nargs="+", metavar="N", help="blocks to compare: all, or numbers such as 3 5 9"
    )
    section.add_argument(
        "--timestep",
        nargs="+",
        type=int,
        metavar="T",
        help="noise levels to read the clip at (default 0: without noise, as guidance reads it)",
    )


def read_blocks(options: argparse.Namespace) -> tuple[list[int] | None, list[int]] | None:
    """The blocks (None: all) and timesteps that `flow` compares; None if it compares no blocks.

    Raises SettingsError.
    """
    words = options.blocks
    if words is None:
        if options.timestep:
            raise SettingsError("--timestep is for --blocks: give --blocks all, or leave out --timestep")
        return None
    if options.guidance_blocks:
        raise SettingsError(
            "--blocks compares blocks, --guidance-blocks draws their flow: give only one of them"
        )
    if words != ["all"] and not all(word.isascii() and word.isdigit() for word in words):
        raise SettingsError(f"--blocks {' '.join(words)}: accepted are all, or block numbers such as 3 5 9")
    return None if words == ["all"] else [int(word) for word in words], options.timestep or [0]


def _add_plan(commands: Any) -> None:
    plan = _add_command(
        commands, "plan", "show the memory and work of a run with each preset, without running it"
    )
    plan.add_argument("--json", action="store_true", help="print the plan as JSON")
    plan.add_argument(
        "--estimate-on",
        metavar="NAME",
        help=f"plan for this device and estimate run times on it: {', '.join(shipped_names('devices'))}, or "
        "one measured by `python -m bench.ceilings` (default: this machine's GPU, if it is one of them)",
    )
    _add_config(plan)
    _add_settings(plan, [item for item in fields(Settings) if item.name in PLAN_OPTIONS])
    plan.add_argument("--quiet", action="store_true", help="print only warnings and the plan")


def _add_report(commands: Any) -> None:
    report = _add_command(commands, "report", "show finished runs on one HTML page")
    report.add_argument("runs", nargs="+", type=_path, metavar="RUN", help="folder of a finished transfer")
    report.add_argument(
        "--output",
        type=_path,
        default=Path("report.html"),
        metavar="FILE",
        help="the page to write",
    )


def _add_evaluate(commands: Any) -> None:
    command = _add_command(commands, "evaluate", "score how well results follow their clips and prompts")
    command.add_argument("runs", nargs="*", type=_path, metavar="RUN", help="folder of a finished transfer")
    command.add_argument(
        "--video", type=_path, metavar="FILE", help="video or image folder to score, instead of runs"
    )
    command.add_argument(
        "--reference", type=_path, metavar="FILE", help="the video whose motion it should follow"
    )
    command.add_argument("--prompt", default="", metavar="TEXT", help="what the video should show")
    command.add_argument(
        "--tracker",
        default="none",
        help="also score point tracks, by lk (Lucas-Kanade) or cotracker (also the paper's score)",
    )
    command.add_argument(
        "--tracker-weights",
        type=_path,
        metavar="FILE",
        help="CoTracker3's scaled_offline.pth (default: from the hub)",
    )
    command.add_argument(
        "--clip",
        default="auto",
        metavar="MODEL",
        help="CLIP model: a hub id, a folder, none, or auto (ViT-B/32 if it is in the hub's cache)",
    )
    command.add_argument("--json", action="store_true", help="print the scores as JSON")
    command.add_argument("--quiet", action="store_true", help="print only warnings and the scores")


def _add_config(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--config", type=_path, metavar="FILE", help="read settings from a YAML file; flags override it"
    )


def _add_settings(command: argparse.ArgumentParser, items: list[Field]) -> None:
    """A flag for each of the settings, in groups, then `--set` and `--print-config`."""
    kinds = get_type_hints(Settings)
    for group in GROUPS:
        section = command.add_argument_group(group)
        for item in items:
            if item.metadata["group"] == group:
                flag = section.add_argument(*_flags(item), **_argument(item, kinds[item.name]))
                flag.setting = item.name  # for `WithDefaults`
    general = command.add_argument_group("general")
    general.add_argument(
        "--set",
        dest="assignments",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set any setting by name, even one without a flag",
    )
    general.add_argument(
        "--print-config", action="store_true", help="print the value of every setting and exit"
    )


def _flags(item: Field) -> list[str]:
    """The flag of a setting, in each of its spellings."""
    names = filter(None, (item.name, item.metadata["spelling"]))
    return [f"--{name.replace('_', '-')}" for name in names]


def _argument(item: Field, kind: Any) -> dict[str, Any]:
    """Keyword arguments of a setting's flag. Values stay strings; `Settings` converts and checks them."""
    text = item.metadata["text"].replace("%", "%%")
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction, "default": None, "help": text}
    metavar = "{" + ",".join(item.metadata["choices"]) + "}" if item.metadata["choices"] else None
    if kind == tuple[str, ...]:
        return {"action": "append", "metavar": item.name.upper(), "help": text}
    if item.name in PAIRS:
        return {"nargs": 2, "metavar": PAIRS[item.name], "help": text}
    if get_origin(kind) is tuple:
        return {"nargs": "+", "metavar": "N", "help": text}
    return {"metavar": metavar or ("WxH" if item.name == "size" else item.name.upper()), "help": text}
