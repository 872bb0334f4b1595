"""The command line: words to settings, progress to screen. Torch is imported once a job needs it."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from ditflow.errors import DitflowError, SettingsError
from ditflow.settings import Settings, read_settings

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
GROUPS = ("video", "model", "memory", "speed", "text", "motion", "sampling", "output")
FLOW_OPTIONS = ("source_prompt", "guidance_blocks", "temperature", "reference")


def main(words: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code: 0 done, 1 failed, 2 usage, 130 interrupted."""
    options = build_parser().parse_args(words)
    try:
        settings = read_options(options)
        if options.print_config:
            print(settings.to_yaml(), end="")
            return DONE
        run_job(options, settings)
    except DitflowError as error:
        print(f"ditflow: {error}", file=sys.stderr)
        return USAGE if isinstance(error, SettingsError) else FAILED
    except KeyboardInterrupt:
        print("ditflow: interrupted", file=sys.stderr)
        return INTERRUPTED
    return DONE


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ditflow", description="Transfer the motion of a video to a new one, with CogVideoX."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    transfer = commands.add_parser("transfer", help="a video and a prompt in, a video with that motion out")
    inject = commands.add_parser("inject", help="reuse a run's embedding for another prompt: no optimisation")
    inject.add_argument(
        "--from", dest="origin", required=True, metavar="RUN", type=Path, help="run folder with an embedding"
    )
    flow = commands.add_parser("flow", help="the motion flow of a video, as pictures and as a file")
    for command in (transfer, inject):
        _add_settings(command, [item for item in fields(Settings) if item.metadata["flag"]])
    for command in (transfer, flow):
        command.add_argument(
            "--config", type=Path, metavar="FILE", help="settings from a YAML file; flags win"
        )
    shown = [
        item
        for item in fields(Settings)
        if item.metadata["group"] in ("video", "model", "memory", "output") or item.name in FLOW_OPTIONS
    ]
    _add_settings(flow, [item for item in shown if item.name != "keep_precision"])
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
    if options.command != "inject":
        return read_settings(options.config, **given)
    origin = options.origin / "settings.yaml"
    if not origin.is_file():
        raise SettingsError(f"--from {options.origin} is no run folder: it has no settings.yaml")
    given.setdefault("output", "")
    return read_settings(
        origin, **given, saved_embedding=str((options.origin / "embedding.safetensors").resolve())
    )


def run_job(options: argparse.Namespace, settings: Settings) -> None:
    """Run the job of a command and say where its results are."""
    from ditflow import jobs
    from ditflow.progress import Progress, ScreenProgress

    job = jobs.flow if options.command == "flow" else jobs.transfer
    quieten_libraries()
    logger, handler = logging.getLogger("ditflow"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("ditflow: warning: %(message)s"))
    if options.quiet:
        progress = Progress()
    else:
        progress = ScreenProgress()
        handler.emit = progress.log
        logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        with progress:
            run = job(settings, progress)
    finally:
        logger.removeHandler(handler)
    print(run.folder)


def quieten_libraries() -> None:
    """Leave the screen to this program: what the libraries beneath report only matters as an error."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


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


if __name__ == "__main__":
    sys.exit(main())
