"""`profiles.explain` and `profiles.roofline` on invented traces and an invented export with known answers."""

import gzip
import json
import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from repository import ROOT

from profiles import roofline
from profiles.explain import explain, parts, shares
from profiles.trace import read_trace

EXPORT = ROOT / "tests" / "data" / "made-up-ncu-raw.csv"


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


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "No such file or directory; give a trace.json.gz"),
        ("[]", "is not a Chrome trace"),
        ('{"traceEvents": []}', "has no step/... and no phase/... ranges"),
    ],
    ids=["absent", "other", "no-ranges"],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "trace.json"
    if content is not None:
        path.write_text(content)
    words = [sys.executable, "-m", "profiles.explain", str(path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert message in done.stderr


def test_roofline_adds_up_launches():
    table = roofline.read_rows(EXPORT)
    flow, preparation = roofline.points_of(table)  # the third kernel computes nothing
    assert (flow.kernel, flow.launches) == ("motion_flow_forward_kernel", 2)
    assert flow.operations == 2 * (200e9 + 1e6 + 2 * 0.5e6 + 1e6)
    assert flow.intensity == flow.operations / 200e6
    assert flow.rate == pytest.approx(flow.operations / 4e-3)
    assert preparation.operations == 10e6 + 2 * 20e6 + 10e6
    assert roofline.bandwidth(table) == 1024 * 2.5e9


def test_roofline_is_drawn_to_scale(tmp_path, capsys):
    output = tmp_path / "roofline.svg"
    assert roofline.main([str(EXPORT), "--device", "epyc-2-cores", str(output)]) == 0
    assert capsys.readouterr().out == f"{output}\n"
    picture = ElementTree.fromstring(output.read_text())
    name = "{http://www.w3.org/2000/svg}"
    texts = [text.text for text in picture.iter(f"{name}text")]
    assert {"products, epyc-2-cores (measured)", "attention, epyc-2-cores (measured)", "2560 GB/s"} <= set(
        texts
    )
    assert "motion_flow_forward_kernel" in texts and "qk_norm_rope_forward_kernel" in texts
    assert sum(path.get("class") == "roof" for path in picture.iter(f"{name}path")) == 3

    flow = next(picture.iter(f"{name}circle"))  # 2000 FLOP per byte, 1e14 FLOP/s
    marks = {text.text: text for text in picture.iter(f"{name}text")}
    left, right = (float(marks[intensity].get("x")) for intensity in ("1000", "10000"))
    assert float(flow.get("cx")) == pytest.approx(left + 0.301 * (right - left), abs=0.2)
    assert float(flow.get("cy")) == pytest.approx(float(marks["1e14"].get("y")) - 4, abs=0.2)
    assert roofline.main([str(EXPORT), str(output)]) == 1
    assert "exists: give another name" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, message",
    [
        (("gpu__time_duration.sum", "other"), "lacks launches or some of Kernel Name"),
        (('"ns"', '"us"'), "is in 'us', accepted: 'ns'; export it with --print-units base"),
        (("motion", "motion"), "device 'unknown': its rates are unknown"),
    ],
    ids=["metric", "unit", "device"],
)
def test_roofline_refuses(tmp_path, capsys, change, message):
    path = tmp_path / "ncu.csv"
    path.write_text(EXPORT.read_text().replace(*change))
    assert roofline.main([str(path), str(tmp_path / "out.svg"), "--device", "unknown"]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out.svg").exists()


def test_roofline_says_when_tensor_cores_were_not_counted(tmp_path, capsys):
    path = tmp_path / "ncu.csv"
    path.write_text(EXPORT.read_text().replace('"200,000,000,000"', '"n/a"'))
    assert roofline.main([str(path), str(tmp_path / "out.svg")]) == 0
    assert "no tensor-core operations were counted" in capsys.readouterr().err
