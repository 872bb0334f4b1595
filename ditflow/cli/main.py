"""The `ditflow` command. Imports torch only when a command needs it, so that `--help` is quick."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ditflow.cli.arguments import USAGE, build_parser, read_options
from ditflow.cli.interrupts import Terminated, terminable
from ditflow.errors import DitflowError, SettingsError
from ditflow.progress import quieten_libraries
from ditflow.settings import Settings

if TYPE_CHECKING:
    from ditflow.progress import Progress

DONE, FAILED, INTERRUPTED, TERMINATED = 0, 1, 130, 143  # and USAGE: exit codes


def main(words: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 1 failed, 2 usage, 130 interrupted, 143 terminated."""
    options = build_parser().parse_args(words)
    try:
        with terminable():
            return run(options)
    except DitflowError as error:
        print_error(error, str(error), options.debug)
        return USAGE if isinstance(error, SettingsError) else FAILED
    except Terminated as request:
        print_error(request, "terminated")
        return TERMINATED
    except KeyboardInterrupt as request:
        print_error(request, "interrupted")
        return INTERRUPTED
    except Exception as error:
        advice = "" if options.debug else "; run again with --debug and report it"
        print_error(error, f"unexpected {type(error).__name__}: {error}{advice}", options.debug)
        return FAILED


def run(options: argparse.Namespace) -> int:
    """Run a command; its errors are raised."""
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


def print_error(error: BaseException, message: str, debug: bool = False) -> None:
    """Print the message and the error's notes on one line of standard error, after the traceback if `debug`.

    Line breaks and control characters in them are escaped or become spaces.
    """
    if debug:
        traceback.print_exception(error)
    line = " ".join("; ".join([message, *getattr(error, "__notes__", [])]).split())
    print("ditflow:", "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line), file=sys.stderr)


def run_job(options: argparse.Namespace, settings: Settings) -> None:
    """Run a new transfer or flow job and print its folder."""
    profile = vars(options).get("profile")  # `flow` has no such option
    if profile is not None:
        from ditflow.profiling.capture import Request, profiled

        request = Request.read(profile)
    quieten_libraries()
    from ditflow.jobs.flow import flow
    from ditflow.jobs.transfer import transfer

    job = flow if options.command == "flow" else transfer
    if profile is not None:
        job = profiled(job, request)
    with shown_progress(options.quiet) as progress:
        run = job(settings, progress)
    print(run.folder)


def continue_run(options: argparse.Namespace) -> None:
    """Resume or decode a run and print its folder."""
    quieten_libraries()
    from ditflow.jobs.transfer import decode, resume

    job = resume if options.command == "resume" else decode
    with shown_progress(options.quiet) as progress:
        print(job(options.run, progress, options.memory).folder)


@contextmanager
def shown_progress(quiet: bool) -> Iterator[Progress]:
    """Show progress and log messages on standard error; if `quiet`, only warnings."""
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
    """Score runs, or a video against a reference, and print the scores."""
    given = options.video, options.reference
    if bool(options.runs) == any(given) or any(given) != all(given):
        raise SettingsError("evaluate: give run folders, or --video and --reference (and --prompt)")
    quieten_libraries()
    from ditflow.evaluation import evaluate
    from ditflow.evaluation.finished import FinishedRun

    prompts = [FinishedRun.open(run).settings.prompt for run in options.runs] or [options.prompt]
    with shown_progress(options.quiet) as progress:
        clip = evaluate.choose_clip(options.clip, prompts)
        instruments = evaluate.Instruments(options.tracker, options.tracker_weights, clip)
        if options.runs:
            found = evaluate.evaluate_runs(options.runs, instruments, progress)
        else:
            found = [evaluate.evaluate_videos(*given, options.prompt, instruments)]
    print(json.dumps(evaluate.as_json(found), indent=2) if options.json else evaluate.as_table(found))


def write_page(options: argparse.Namespace) -> None:
    """Write the page about runs and print its path."""
    quieten_libraries()
    from ditflow.report.page import write_report

    with shown_progress(quiet=True):
        write_report(options.runs, options.output)
    print(options.output)


def print_doctor(options: argparse.Namespace) -> None:
    """Print a description of this machine and of what a run would use."""
    from ditflow.cli.doctor import print_facts

    print_facts(options.json)


def print_plan(options: argparse.Namespace, settings: Settings) -> None:
    """Plan a run with every preset and print the plans."""
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


# the commands that take no settings
COMMANDS = {
    "evaluate": print_evaluation,
    "report": write_page,
    "resume": continue_run,
    "decode": continue_run,
    "doctor": print_doctor,
}


if __name__ == "__main__":
    sys.exit(main())
