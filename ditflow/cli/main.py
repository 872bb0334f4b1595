"""The command line: runs what its words ask for. Torch is imported once a job needs it."""

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
    """Run a command; returns its exit code: 0 done, 1 failed, 2 usage, 130 interrupted, 143 terminated."""
    options = build_parser().parse_args(words)
    try:
        with terminable():
            return run(options)
    except DitflowError as error:
        say(error, str(error), options.debug)
        return USAGE if isinstance(error, SettingsError) else FAILED
    except Terminated as request:
        say(request, "terminated")
        return TERMINATED
    except KeyboardInterrupt as request:
        say(request, "interrupted")
        return INTERRUPTED
    except Exception as error:
        what = f"unexpected {type(error).__name__}: {error}"
        say(error, what if options.debug else f"{what}; run again with --debug and report it", options.debug)
        return FAILED


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


def say(error: BaseException, message: str, debug: bool = False) -> None:
    """One line on standard error, whatever is in the message, with what was noted on the error's way.

    Before it, with `debug`, the traceback.
    """
    if debug:
        traceback.print_exception(error)
    line = " ".join("; ".join([message, *getattr(error, "__notes__", [])]).split())
    print("ditflow:", "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line), file=sys.stderr)


def run_job(options: argparse.Namespace, settings: Settings) -> None:
    """Run the job of a command and say where its results are."""
    words = vars(options).get("profile")  # no word of `flow`
    if words is not None:
        from ditflow.profiling.capture import Request, profiled

        request = Request.read(words)
    quieten_libraries()
    from ditflow.jobs.flow import flow
    from ditflow.jobs.transfer import transfer

    job = flow if options.command == "flow" else transfer
    if words is not None:
        job = profiled(job, request)
    with telling(options.quiet) as progress:
        run = job(settings, progress)
    print(run.folder)


def go_on(options: argparse.Namespace) -> None:
    """Resume or decode a run and say where its results are."""
    quieten_libraries()
    from ditflow.jobs.transfer import decode, resume

    job = resume if options.command == "resume" else decode
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


def print_doctor(options: argparse.Namespace) -> None:
    """Print what this machine has and what a run would use."""
    from ditflow.cli.doctor import print_facts

    print_facts(options.json)


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


# those that take no settings
COMMANDS = {
    "evaluate": print_evaluation,
    "report": write_page,
    "resume": go_on,
    "decode": go_on,
    "doctor": print_doctor,
}


if __name__ == "__main__":
    sys.exit(main())
