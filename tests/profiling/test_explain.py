"""`ditflow explain` on invented traces with known answers."""

import gzip
import json
import re

import pytest

from ditflow.cli.main import main
from ditflow.profiling.explain import explain, parts, shares
from ditflow.profiling.trace import read_trace


def event(category, name, start, end, thread=1, **args):
    return {
        "ph": "X", "cat": category, "name": name, "ts": start, "dur": end - start, "tid": thread, "args": args
    }  # fmt: skip


def saved(path, events):
    with gzip.open(path, "wt") as file:
        json.dump({"traceEvents": events}, file)
    return path


@pytest.fixture
def device_trace(tmp_path):
    """A guided step, then a plain one that the host starts while the device still works on the first."""
    events = [
        {"ph": "M", "name": "process_name", "ts": 0, "pid": 1, "args": {"name": "made up"}},
        event("user_annotation", "phase/denoise", 0, 1300),
        event("user_annotation", "step/009/guided", 0, 700),
        event("user_annotation", "optimise/009/0", 100, 600),
        event("user_annotation", "block/00", 100, 300),
        event("user_annotation", "kernel/motion_flow_loss", 320, 360),
        event("cpu_op", "aten::mm", 100, 150),
        event("cuda_runtime", "cudaLaunchKernel", 120, 140, correlation=1),
        event("cuda_runtime", "cudaMemcpyAsync", 200, 220, correlation=2),
        event("cuda_runtime", "cudaLaunchKernel", 330, 350, thread=2, correlation=3),  # autograd's own thread
        event("cuda_runtime", "cudaStreamSynchronize", 360, 640),
        event("kernel", "gemm", 150, 450, thread="stream 7", correlation=1),
        event("gpu_memcpy", "Memcpy HtoD", 400, 500, thread="stream 8", correlation=2),
        event("kernel", "motion_flow_forward_kernel", 550, 900, thread="stream 7", correlation=3),
        event("user_annotation", "step/010/plain", 700, 1000),
        event("cuda_runtime", "cudaLaunchKernel", 710, 730, correlation=4),
        event("kernel", "gemm", 950, 1200, thread="stream 7", correlation=4),
    ]
    return saved(tmp_path / "trace.json.gz", events)


def test_a_step_is_divided_into_kernels_copies_host_and_gaps(device_trace):
    trace = read_trace(device_trace)
    guided, plain = parts(trace)
    assert (guided.name, guided.spans) == ("guided step", [(0, 900)])
    assert shares(trace, guided) == {
        "kernels": 300 + 350,
        "copies": 50,  # the rest overlaps a kernel
        "host": 50,  # an operator and its launch until 150; waiting does not count
        "gaps": 900 - 650 - 50 - 50,
    }
    assert (plain.name, plain.spans) == ("plain step", [(900, 1200)])  # not before the device is free
    assert shares(trace, plain) == {"kernels": 250, "copies": 0, "host": 0, "gaps": 50}


def rows(text, part):
    """The rows of a part of the report, by name: milliseconds and share."""
    found = {}
    for line in text.split(f"{part}: ")[1].split("\n\n")[0].splitlines():
        if row := re.match(r" {4}(.+?) +([\d.]+) ms +([\d.]+%)", line):
            found[row[1]] = float(row[2]), row[3]
    return found


def test_explained_in_words(device_trace):
    said = explain(read_trace(device_trace))
    guided, plain = rows(said, "guided step"), rows(said, "plain step")
    assert guided["kernels"] == (0.65, "72.2%")
    assert guided["optimise"] == (0.75, "83.3%")  # both kernels and the copy, whenever they ran
    assert guided["block"] == (0.4, "44.4%")
    assert guided["kernel/motion_flow_loss"] == guided["motion_flow_forward_kernel"] == (0.35, "38.9%")
    assert plain["gemm"] == (0.25, "83.3%")
    assert not {"optimise", "motion_flow_forward_kernel"} & set(plain)
    assert "phase/denoise" not in said  # its steps say more


def test_without_a_device_operators_count_by_their_own_time(tmp_path):
    events = [
        event("user_annotation", "phase/decode", 0, 100),
        event("cpu_op", "aten::linear", 10, 70),
        event("cpu_op", "aten::addmm", 20, 60),
        event("cpu_op", "aten::addmm", 80, 90),
        event("cpu_op", "aten::addmm", 120, 190),  # after it
    ]
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"traceEvents": events}))
    found = rows(explain(read_trace(path)), "phase/decode")
    assert found == {
        "host": (0.07, "70.0%"),
        "gaps": (0.03, "30.0%"),
        "aten::addmm": (0.05, "50.0%"),
        "aten::linear": (0.02, "20.0%"),
    }


def test_the_command_prints_it(device_trace, capsys):
    assert main(["explain", str(device_trace)]) == 0
    assert capsys.readouterr().out == explain(read_trace(device_trace)) + "\n"


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "No such file or directory; give a trace.json.gz"),
        ("[]", "is not a Chrome trace"),
        ('{"traceEvents": [{"ph": "X", "cat": "kernel", "name": "gemm"}]}', "is not a Chrome trace"),
        ('{"traceEvents": [3]}', "is not a Chrome trace"),
        ('{"traceEvents": []}', "has no step/... and no phase/... ranges"),
    ],
    ids=["absent", "other", "no-times", "no-events", "no-ranges"],
)
def test_other_files_are_refused(tmp_path, content, message, capsys):
    path = tmp_path / "trace.json"
    if content is not None:
        path.write_text(content)
    assert main(["explain", str(path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert message in captured.err
