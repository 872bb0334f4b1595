"""The scripts for the Nsight tools: the commands they run, what they refuse, where reports go."""

import subprocess

import pytest
from repository import ROOT

from profiles import roofline

NSYS, NCU = (ROOT / "profiles" / f"{name}.sh" for name in ("nsys", "ncu"))


def ran(script, *words, path="/usr/bin:/bin", folder):
    environment = {"PATH": path, "TMPDIR": str(folder)}
    return subprocess.run(
        ["bash", str(script), *words], cwd=folder, env=environment, capture_output=True, text=True
    )


COMMAND = ("ditflow", "transfer", "--prompt", "a dog", "--profile", "steps=2")


@pytest.mark.parametrize("script", [NSYS, NCU, NSYS.with_name("nsight.sh")], ids=lambda path: path.name)
def test_scripts_are_bash(script):
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True).stderr == b""


def test_nsys_dry_run(tmp_path):
    done = ran(NSYS, "--dry-run", *COMMAND, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("env DITFLOW_PROFILER=nsight nsys profile --trace=cuda")
    assert "--capture-range=cudaProfilerApi --capture-range-end=stop" in done.stdout
    assert done.stdout.rstrip().endswith(r"ditflow transfer --prompt a\ dog --profile steps=2")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words, chosen",
    [
        ([], r"--kernel-name-base function --kernel-name regex:\^\(motion_flow\|qk_norm_rope\)_"),
        (["--kernel", "gemm"], "--kernel-name-base function --kernel-name regex:gemm"),
        (["--range", "optimise/003/1"], r"--nvtx --nvtx-include ditflow@optimise\\/003\\/1/"),
    ],
    ids=["default", "kernel", "range"],
)
def test_ncu_dry_run(tmp_path, words, chosen):
    done = ran(NCU, "--dry-run", *words, *COMMAND, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    watch, export = done.stdout.splitlines()
    assert watch.startswith("env DITFLOW_PROFILER=nsight ncu ")
    assert f"--profile-from-start off {chosen} --section=SpeedOfLight" in watch
    metrics = watch.split("--metrics ")[1].split()[0].split("\\,")
    wanted = {*roofline.UNITS, *roofline.OPERATIONS, roofline.BYTES_A_CYCLE, roofline.CYCLES_A_SECOND}
    assert set(metrics) == wanted
    report = watch.split("--export ")[1].split()[0]
    assert export == f"ncu --import {report}.ncu-rep --page raw --csv --print-units base >{report}.csv"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "script, words, message",
    [
        (NSYS, COMMAND, "nsys.sh: nsys is not installed: it comes with Nsight Systems"),
        (NCU, COMMAND, "ncu.sh: ncu is not installed: it comes with Nsight Compute"),
        (NSYS, (), "nsys.sh: no command given"),
        (NCU, COMMAND[:-2], "ncu.sh: the command has no --profile"),
        (NCU, ("--metric", "x"), "ncu.sh: --metric: unknown; accepted: --dry-run, --range"),
        (NCU, ("--range",), "ncu.sh: --range: nothing given"),
    ],
    ids=["nsys", "ncu", "nothing", "no-profile", "option", "range"],
)
def test_scripts_refuse_in_one_line(tmp_path, script, words, message):
    done = ran(script, *words, folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert message in done.stderr


def program(path, *lines):
    path.write_text("\n".join(["#!/usr/bin/env bash", *lines, ""]))
    path.chmod(0o755)


def made_ditflow(tools):
    """Write a fake `ditflow` that makes a finished run and notes its arguments and profiler."""
    program(
        tools / "ditflow",
        "mkdir -p runs/one && echo {} > runs/one/run.json",
        'echo "$DITFLOW_PROFILER $*" > runs/one/asked',
        "echo runs/one",
    )


def test_reports_go_into_the_run_folder(tmp_path):
    """With fake tools that run the command after their options and write a report."""
    tools = tmp_path / "tools"
    tools.mkdir()
    made_ditflow(tools)
    write = 'while [[ $1 != ditflow ]]; do case $1 in --export|--output) out=$2 ;; esac; shift; done; "$@"'
    program(tools / "nsys", write, 'echo report > "$out.nsys-rep"', "echo Generated:")
    program(
        tools / "ncu",
        'if [[ $1 == --import ]]; then [[ -f $2 ]] && echo "$*"; exit; fi',
        write,
        'echo report > "$out.ncu-rep"',
    )
    for script in (NSYS, NCU):
        done = ran(script, *COMMAND, path=f"{tools}:/usr/bin:/bin", folder=tmp_path)
        assert (done.returncode, done.stderr) == (0, ""), done
        assert done.stdout.endswith("profile: runs/one/profile\n")
    kept = tmp_path / "runs" / "one"
    assert (kept / "asked").read_text() == f"nsight {' '.join(COMMAND[1:])}\n"
    assert {path.name for path in (kept / "profile").iterdir()} == {"nsys.nsys-rep", "ncu.ncu-rep", "ncu.csv"}
    assert "--page raw --csv --print-units base" in (kept / "profile" / "ncu.csv").read_text()
    assert not list(tmp_path.glob("ditflow-*"))


def test_a_failed_run_keeps_its_exit_code(tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    program(tools / "nsys", "exit 3")
    assert ran(NSYS, *COMMAND, path=f"{tools}:/usr/bin:/bin", folder=tmp_path).returncode == 3
