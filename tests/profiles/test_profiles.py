"""`profiles.roofline` on an invented export with known answers."""

from xml.etree import ElementTree

import pytest
from repository import ROOT

from profiles import roofline

EXPORT = ROOT / "tests" / "data" / "made-up-ncu-raw.csv"


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
