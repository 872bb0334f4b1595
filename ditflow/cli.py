"""The command line: words to settings, progress to screen. Torch is imported once a job needs it."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_origin, get_type_hints

from ditflow.errors import DitflowError, SettingsError
from ditflow.interrupts import Terminated, terminable
from ditflow.settings import Settings, read_settings

if TYPE_CHECKING:
    from ditflow.progress import Progress

DONE, FAILED, USAGE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
GROUPS = ("video", "model", "memory", "speed", "text", "motion", "sampling", "output")
FLOW_OPTIONS = ("source_prompt", "guidance_blocks", "temperature", "reference")
PLAN_OPTIONS = (
    *("frames", "size", "model", "dtype", "memory", "weights", "steps", "guidance_scale", "guidance", "loss"),
    *("optimise", "guided", "optimisation_steps", "guidance_blocks", "injection", "injection_blocks"),
)


def main(words: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code: 0 done, 1 failed, 2 usage, 130 interrupted, 143 terminated."""
    options = build_parser().parse_args(words)
    try:
        with terminable():
            return run(options)
    except DitflowError as error:
        print(f"ditflow: {with_notes(error, str(error))}", file=sys.stderr)
        return USAGE if isinstance(error, SettingsError) else FAILED
    except Terminated as request:
        print(f"ditflow: {with_notes(request, 'terminated')}", file=sys.stderr)
        return TERMINATED
    except KeyboardInterrupt as request:
        print(f"ditflow: {with_notes(request, 'interrupted')}", file=sys.stderr)
        return INTERRUPTED


def run(options: argparse.Namespace) -> int:
    """What `main` does, without its care for errors."""
    if options.command in COMMANDS:
        COMMANDS[options.command](options)
        return DONE
    settings = read_options(options)
    if options.print_config:
        print(settings.to_yaml(), end="")
    elif options.command == "plan":
        print_plan(options, settings)
    else:
        run_job(options, settings)
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
    words = vars(options).get("profile")  # no word of `flow`
    if words is not None:
        from ditflow.profiling import Request, profiled

        request = Request.read(words)
    quieten_libraries()
    from ditflow import jobs

    job = jobs.flow if options.command == "flow" else jobs.transfer
    if words is not None:
        job = profiled(job, request)
    with telling(options.quiet) as progress:
        run = job(settings, progress)
    print(run.folder)


def go_on(options: argparse.Namespace) -> None:
    """Resume or decode a run and say where its results are."""
    quieten_libraries()
    from ditflow import jobs

    job = jobs.resume if options.command == "resume" else jobs.decode
    with telling(options.quiet) as progress:
        print(job(options.run, progress, options.memory).folder)


@contextmanager
def telling(quiet: bool) -> Iterator[Progress]:
    """Progress, news and warnings on standard error while a command works; `quiet`: only warnings."""
    from ditflow.progress import Progress, ScreenProgress

    logger, handler = logging.getLogger("ditflow"), logging.StreamHandler()
    level = logger.level
    handler.setFormatter(logging.Formatter("ditflow: warning: %(message)s"))
    if quiet:
        progress = Progress()
    else:
        progress = ScreenProgress()
        handler.emit = progress.log
        logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        with progress:
            yield progress
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def print_evaluation(options: argparse.Namespace) -> None:
    """Measure runs, or a video against a reference, and print the numbers."""
    given = options.video, options.reference
    if bool(options.runs) == any(given) or any(given) != all(given):
        raise SettingsError("evaluate: give run folders, or --video and --reference (and --prompt)")
    quieten_libraries()
    from ditflow.evaluation import evaluate
    from ditflow.evaluation.finished import FinishedRun

    prompts = [FinishedRun.open(run).settings.prompt for run in options.runs] or [options.prompt]
    with telling(options.quiet) as progress:
        clip = evaluate.choose_clip(options.clip, prompts)
        instruments = evaluate.Instruments(options.tracker, options.tracker_weights, clip)
        if options.runs:
            found = evaluate.evaluate_runs(options.runs, instruments, progress)
        else:
            found = [evaluate.evaluate_videos(*given, options.prompt, instruments)]
    print(json.dumps(evaluate.as_json(found), indent=2) if options.json else evaluate.as_table(found))


def write_page(options: argparse.Namespace) -> None:
    """Write the page about runs and say where it is."""
    quieten_libraries()
    from ditflow.report.page import write_report

    with telling(quiet=True):
        write_report(options.runs, options.output)
    print(options.output)


def print_plan(options: argparse.Namespace, settings: Settings) -> None:
    """Plan a run with every preset and print what it takes."""
    quieten_libraries()
    from ditflow.planning import words
    from ditflow.planning.ceilings import read_ceilings
    from ditflow.planning.choice import plan_all

    ceilings = read_ceilings(options.device_name) if options.device_name else None
    plans, chosen, why = plan_all(settings)
    if options.json:
        print(json.dumps(words.as_mapping(plans, chosen, why, ceilings), indent=2))
    else:
        words.print_plans(plans, chosen, why, ceilings)


def with_notes(error: BaseException, words: str) -> str:
    """What happened, in words, and what was noted on the error's way."""
    return "; ".join([words, *getattr(error, "__notes__", [])])


def quieten_libraries() -> None:
    """Leave the screen to this program: what the libraries beneath report only matters as an error."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it speaks when diffusers imports it
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


# those that take no settings
COMMANDS = {"evaluate": print_evaluation, "report": write_page, "resume": go_on, "decode": go_on}


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


if __name__ == "__main__":
    sys.exit(main())
