"""The `ditflow` command. Imports torch only when a command needs it, so that `--help` is quick."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ditflow.app.command import serve
from ditflow.cli.arguments import build_parser, read_blocks, read_options
from ditflow.cli.interrupts import REQUESTS, HungUp, Terminated, terminable
from ditflow.cli.parser import USAGE
from ditflow.cli.terminal import Output, one_line, steady_output
from ditflow.comfyui.command import install_nodes
from ditflow.errors import DitflowError, SettingsError, interruption
from ditflow.files import check_source, json_text
from ditflow.jobs.needs import check_first
from ditflow.progress import quieten_libraries
from ditflow.run_folder.kind import check_finished_folder, check_run_folder, check_some_finished
from ditflow.settings import Settings

if TYPE_CHECKING:
    from ditflow.progress import Progress

DONE, FAILED = 0, 1  # exit codes, with USAGE
ENDINGS = {  # exit codes and messages; the codes are 128 and the signal's number, as a shell gives them
    HungUp: (129, "the terminal was closed"),
    KeyboardInterrupt: (130, "interrupted"),
    Terminated: (143, "terminated"),
}
LONGEST_SHOWN = 300  # characters of a path in a message
RUNS = ("transfer", "inject", "flow", "resume", "decode", "report", "batch")  # their results are files


def main(words: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0 done, 1 failed, 2 usage, 129 terminal closed, 130 interrupted, 143 terminated.
    """
    with steady_output() as (output, _), terminable() as received:
        return _finish(words, output, received)


def _finish(words: Sequence[str] | None, output: Output, received: Sequence[int]) -> int:
    """Run a command, print its error if there is one, and return its exit code."""
    debug = False
    try:
        options = build_parser().parse_args(words)
        debug = options.debug
        run(options)
        return output_code(options, output)
    except (Exception, KeyboardInterrupt) as error:
        if request := interruption(error):
            kind = REQUESTS[signal.Signals(received[0]).name] if received else type(request)
            code, message = ENDINGS[kind]
            print_error(error, message)
            return code
        known = isinstance(error, DitflowError)
        print_error(error, str(error) if known else unforeseen(error, debug), debug)
        return USAGE if isinstance(error, SettingsError) else FAILED


def run(options: argparse.Namespace) -> None:
    """Run a command; its errors are raised."""
    if options.command in COMMANDS:
        COMMANDS[options.command](options)
        return
    settings = read_options(options)
    if options.print_config:
        print(settings.to_yaml(), end="")
    elif options.command == "plan":
        from ditflow.cli.plan import print_plan

        print_plan(options, settings)
    elif options.command == "flow" and (given := read_blocks(options)):
        print_blocks(options, settings, *given)
    else:
        run_job(options, settings)


def print_error(error: BaseException, message: str, debug: bool = False) -> None:
    """Print the message and the error's notes on one line, after the traceback if `debug`."""
    if debug:
        traceback.print_exception(error)
    print(f"ditflow: {one_line(message, *getattr(error, '__notes__', []))}", file=sys.stderr)


def unforeseen(error: Exception, debug: bool) -> str:
    """The message of an error that only the system or a fault in this program can cause."""
    if isinstance(error, OSError) and error.filename and not isinstance(error, FileNotFoundError):
        path = str(error.filename)[:LONGEST_SHOWN]
        return f"{path} cannot be used ({error.strerror}): change that, or give another path"
    advice = "" if debug else "; run again with --debug and report it"
    return f"unexpected {type(error).__name__}: {error}{advice}"


def output_code(options: argparse.Namespace, output: Output) -> int:
    """The exit code of a command that is done: a failure if it had to print its result and could not.

    A reader that has left, such as `head`, wanted no more. A run's result is its folder.
    """
    if output.lost is None or isinstance(output.lost, BrokenPipeError):
        return DONE
    reason = getattr(output.lost, "strerror", None) or output.lost
    lost = f"standard output cannot be written ({reason})"
    if options.command in RUNS and not vars(options).get("print_config"):
        print_error(output.lost, f"warning: the command is done, but {lost}")
        return DONE
    print_error(output.lost, f"{lost}: send it to another place")
    return FAILED


def run_job(options: argparse.Namespace, settings: Settings) -> None:
    """Run a new transfer or flow job and print its folder."""
    profile = vars(options).get("profile")  # `flow` has no such option
    if profile is not None:
        from ditflow.profiling.capture import Request, profiled

        request = Request.read(profile)
    check_first(settings, options.command)
    quieten_libraries()
    from ditflow.jobs.flow import flow
    from ditflow.jobs.transfer import transfer

    job = flow if options.command == "flow" else transfer
    if profile is not None:
        job = profiled(job, request)
    with shown_progress(options.quiet) as progress:
        if every := vars(options).get("preview"):
            from ditflow.cli.preview import PreviewFile

            progress = PreviewFile(progress, every)
        run = job(settings, progress)
    print(run.folder)


def print_blocks(
    options: argparse.Namespace, settings: Settings, blocks: list[int] | None, timesteps: list[int]
) -> None:
    """Compare blocks, and print the comparison and its folder; if quiet, only the folder."""
    check_first(settings, options.command)
    quieten_libraries()
    from ditflow.jobs.blocks import compare_blocks

    with shown_progress(options.quiet) as progress:
        run, comparison = compare_blocks(settings, blocks, timesteps, progress)
    if not options.quiet:
        print(comparison.as_text())
    print(run.folder)


def continue_run(options: argparse.Namespace) -> None:
    """Resume or decode a run and print its folder."""
    check_run_folder(options.run)
    quieten_libraries()
    from ditflow.jobs.transfer import decode, resume

    job = resume if options.command == "resume" else decode
    with shown_progress(options.quiet) as progress:
        print(job(options.run, progress, options.memory).folder)


@contextmanager
def shown_progress(quiet: bool) -> Iterator[Progress]:
    """Show progress and log messages on standard error; if `quiet`, only warnings."""
    from ditflow.cli.screen import LineHandler, LineProgress, ScreenProgress
    from ditflow.progress import Progress

    logger, handler = logging.getLogger("ditflow"), LineHandler()
    level = logger.level
    if quiet:
        progress = Progress()
    else:
        progress = ScreenProgress() if sys.stderr.isatty() else LineProgress()
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
    for run in options.runs:
        check_finished_folder(run)
    for video in filter(None, given):
        check_source(video)
    quieten_libraries()
    from ditflow.evaluation import evaluate, tables
    from ditflow.evaluation.finished import FinishedRun

    prompts = [FinishedRun.open(run).settings.prompt for run in options.runs] or [options.prompt]
    with shown_progress(options.quiet) as progress:
        clip = evaluate.choose_clip(options.clip, prompts)
        instruments = evaluate.Instruments(options.tracker, options.tracker_weights, clip)
        if options.runs:
            found, matrix = evaluate.evaluate_runs(options.runs, instruments, progress)
        else:
            found, matrix = [evaluate.evaluate_videos(*given, options.prompt, instruments)], None
    print(json_text(tables.as_json(found, matrix)) if options.json else tables.as_table(found, matrix))


def write_page(options: argparse.Namespace) -> None:
    """Write the page about runs and print its path."""
    check_some_finished(options.runs)
    quieten_libraries()
    from ditflow.pages.page import report

    with shown_progress(quiet=True):
        report(options.runs, options.output)
    print(options.output)


def run_batch(options: argparse.Namespace) -> None:
    """Run a file of jobs and print the path of its index."""
    from ditflow.batch.jobs_file import read_rows

    rows = read_rows(options.jobs)
    from ditflow.batch.command import run_rows
    from ditflow.cli.batch_table import shown_batch

    with shown_batch(options.quiet) as watch:
        index = run_rows(rows, options, watch)
    print(index)


def print_explanation(options: argparse.Namespace) -> None:
    """Print where the time of a profiled run's steps went."""
    from ditflow.profiling.explain import explain
    from ditflow.profiling.trace import read_trace

    print(explain(read_trace(options.trace)))


def print_doctor(options: argparse.Namespace) -> None:
    """Print a description of this machine and of what a run would use."""
    from ditflow.cli.doctor import print_facts

    print_facts(options.json)


# the commands that take no settings
COMMANDS = {
    "app": serve,
    "evaluate": print_evaluation,
    "report": write_page,
    "batch": run_batch,
    "resume": continue_run,
    "decode": continue_run,
    "explain": print_explanation,
    "doctor": print_doctor,
    "comfyui": install_nodes,
}
