"""docs/performance.md: the committed page is up to date, and all its numbers come from the sources."""

import json
import re
import xml.etree.ElementTree as xml

import pytest
import yaml

from bench import report as page
from bench.plots import roofline, stacked_bars, stairs
from bench.report import PAGE, PICTURES, ROOT, report
from bench.tables import duration
from bench.tunnel.page import TUNNEL_PAGE

PHASES = {  # name: times, peak GiB, PFLOP, copied GiB
    "text": (1, 2.0, 0.001, 0.0),
    "optimise": (50, 3.0, 0.1, 8.0),
    "denoise": (50, 2.5, 0.2, 0.0),
}


def plan():
    def run(preset, frames, fits):
        phases = [
            {
                "name": name,
                "times": times,
                "peak_bytes": peak * 2**30,
                "flops": flops * 1e15,
                "attention_flops": 0,
                "int8_flops": 0,
                "moved_bytes": 0,
                "copied_bytes": copied * 2**30,
            }
            for name, (times, peak, flops, copied) in PHASES.items()
        ]
        place = {"resident": 7, "streamed": 35, "peak_bytes": 3 * 2**30, "host_bytes": 10 * 2**30}
        head = {"frames": frames, "preset": preset, "gigabytes": 4, "fits": fits}
        return head | place | {"phases": phases}

    runs = [run("4gb", 24, True), run("8gb", 24, True), run("4gb", 49, False), run("8gb", 49, True)]
    return {"kind": "planned", "model": "A model", "runs": runs}


GPU = {
    "kind": "gpu",
    "device": "A GPU",
    "date": "2026-12-01",
    "commit": "abc",
    "torch": "2.13",
    "triton": "3.7",
    "ceilings": {"copied_bytes": 3e12, "product_flops": 7e14, "int8_product_flops": 14e14},
    "passes": [
        {
            "of": "flow forward",
            "size": "5B, 24 frames",
            "rival": "triton",
            "milliseconds": 2.5,
            "peak_bytes": 10**7,
            "least_milliseconds": 2.0,
            "reason": None,
        }
    ],
    "steps": [
        {
            "variant": {
                "model": "5b",
                "frames": 24,
                "preset": "auto",
                "speed": "exact",
                "attention": "sdpa",
                "compiled": False,
                "kernels": "triton",
            },
            "step": "all",
            "milliseconds": None,
            "reason": "no time left",
        }
    ],
}
CPU = {
    "kind": "cpu",
    "device": "A CPU",
    "date": "2026-12-02",
    "contests": [
        {
            "name": "encode",
            "size": "small",
            "seconds": 0.0123,
            "ratios": {"diffusers": 1.25},
            "load": [0.25, 1.5],
            "threads": 2,
            "torch": "2.13",
            "commit": "def",
        }
    ],
}
DEVICE = {
    "device": "card",
    "measured": "2026-12-03",
    "dtype": "bfloat16",
    "product_flops": 1e14,
    "attention_flops": 5e13,
    "copied_bytes": 2.5e10,
}


@pytest.fixture
def made(tmp_path):
    """Makes a report from invented sources."""

    def make(*results):
        for folder in ("bench/results", "configs/devices"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for index, each in enumerate(results):
            (tmp_path / "bench/results" / f"{index}.json").write_text(json.dumps(each))
        (tmp_path / "configs/devices/card.yaml").write_text(yaml.safe_dump(DEVICE))
        (tmp_path / "bench/published.yaml").write_text((ROOT / "bench/published.yaml").read_text())
        (tmp_path / "bench/ratios.csv").write_text("name,rival,least,most,set\nencode,diffusers,1,1.5,then\n")
        return report(tmp_path)

    return make


def test_what_is_committed_is_what_the_sources_make():
    files = report(ROOT)
    for path, text in files.items():
        committed = (ROOT / path).read_text(encoding="utf-8") if (ROOT / path).exists() else ""
        assert committed == text, f"{path} is out of date: python -m bench.report"
    drawn = {path.relative_to(ROOT) for path in (ROOT / PICTURES).glob("*")}
    assert drawn == set(files) - {PAGE, TUNNEL_PAGE}, "a picture of nothing"


def test_no_number_is_typed_by_hand():
    template = page.TEMPLATE.read_text(encoding="utf-8")
    assert len(template) > 2000 and not re.search(r"\d", template)


def test_planned_numbers(made):
    text = made(plan())[PAGE]
    assert "| 4gb | 3.0 | optimise | 15.0 | 400 | 25 min | 5 min | 75 s |" in text
    assert "| 4gb | does not fit (3.0) | optimise | - | - | - | - | - |" in text
    assert "| card (bfloat16) | 2026-12-03 | 100 | unknown | 50 | unknown | 25 | 3 min |" in text
    assert "Nothing yet: **no GPU has been measured.**" in text
    assert "Nothing yet: **no ratio has been measured.**" in text


def figures(text):
    """By preset and frames, the peak on the card in each table of a page."""
    found, frames, places = {}, None, {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if heading := re.fullmatch(r"### (\d+) frames", line):
            frames = int(heading[1])
        elif line.startswith("| preset |"):
            places = {frames: cells.index("peak GiB")} if "peak GiB" in cells else {}
            for place, name in enumerate(cells):
                if length := re.match(r"(\d+) frames: card", name):
                    places[int(length[1])] = place
        elif re.fullmatch(r"\d+gb", cells[0]):
            for length, place in places.items():
                found.setdefault((cells[0], length), []).append(cells[place].split(",")[0])
    return found


def disagreements(text):
    """What the tables of a page say differently of the same preset and frame count."""
    return {key: set(peaks) for key, peaks in figures(text).items() if len(set(peaks)) > 1}


def test_the_tables_of_the_page_agree():
    committed = (ROOT / PAGE).read_text(encoding="utf-8")
    assert len(figures(committed)) == 16
    assert all(len(peaks) == 2 for peaks in figures(committed).values()), "a peak is in two of its tables"
    assert disagreements(committed) == {}


def test_a_planted_disagreement_is_found():
    """A figure rounded twice, in any of the tables; and one that fits in one table only."""
    committed = (ROOT / PAGE).read_text(encoding="utf-8")
    for key, right, wrong in ((("24gb", 24), "22.2", "22.3"), (("24gb", 49), "does not fit (31.5)", "31.5")):
        for place in re.finditer(re.escape(right), committed):
            planted = committed[: place.start()] + wrong + committed[place.end() :]
            assert disagreements(planted) == {key: {right, wrong}}


def test_figures_are_rounded_once(made):
    """A byte above the middle: rounding to three digits first would show 22.3 instead of 22.2."""
    found = plan()
    for run in found["runs"]:
        run["peak_bytes"] = int(22.249 * 2**30)
    text = made(found)[PAGE]
    assert set(sum(figures(text).values(), [])) == {"22.2", "does not fit (22.2)"}


def test_measured_numbers(made):
    text = made(plan(), GPU, CPU)[PAGE]
    assert "### A GPU" in text and "2026-12-01, abc, torch 2.13, triton 3.7" in text
    assert "products 700 TFLOP/s, in int8 1400 TFLOP/s, copies 3.00 TB/s" in text
    assert "| triton | 2.500 | 80 % | 10.0 |" in text
    assert "| plain | all | no time left | - | - | - | - | - |" in text
    assert "A CPU, 2026-12-02, def, torch 2.13, threads: 2, load 0.2 to 1.5." in text
    assert "| encode | 12.3 | diffusers | 1.25 | 1 to 1.5 |" in text
    assert "Nothing yet" not in text


def test_what_is_not_there_is_missing(made):
    files = made()
    assert list(files) == [PAGE, TUNNEL_PAGE] and "**No plan is on file.**" in files[PAGE]
    assert "| card (bfloat16) | 2026-12-03 | 100 | unknown | 50 | unknown | 25 | - |" in files[PAGE]


def test_other_systems_are_shown_as_they_are_on_file(made):
    text = made()[PAGE]
    published = yaml.safe_load((ROOT / "bench/published.yaml").read_text())
    assert len(published) == 4
    for each in published:
        assert f"| {' | '.join(each[name] for name in ('system', 'time', 'memory', 'model'))} |" in text
    assert "Not comparable as they stand" in text


def test_pictures_that_are_named_are_made(made):
    files = made(plan())
    named = set(re.findall(r"\]\((performance/[^)]+)\)", files[PAGE]))
    assert {f"docs/{name}" for name in named} == {path.as_posix() for path in files if path.suffix == ".svg"}
    for path in files:
        if path.suffix == ".svg":
            assert xml.fromstring(files[path]).tag.endswith("svg")


def shapes(picture, kind):
    return [each for each in xml.fromstring(picture).iter() if each.tag.endswith(f"}}{kind}")]


def test_bars_are_as_long_as_what_they_stand_for():
    picture = stacked_bars("it", "s", {"one": {"a": 1.0, "b": 3.0}, "two": {"a": 2.0}})
    widths = [float(bar.get("width")) for bar in shapes(picture, "rect")[1:4]]
    assert widths == pytest.approx([widths[0], 3 * widths[0], 2 * widths[0]], abs=0.2)


def test_stairs_are_as_high_as_what_they_stand_for():
    picture = stairs("it", str, {"one": {"a": 0.0, "b": 4.0}, "two": {"a": 2.0, "b": 2.0}})
    one, two = (
        [point.split(",") for point in line.get("points").split()] for line in shapes(picture, "polyline")
    )
    floor, top, middle = (float(point[1]) for point in (one[0], one[2], two[0]))
    assert floor - middle == pytest.approx(middle - top, abs=0.2) and top < floor


def test_points_lie_under_the_roof():
    picture = roofline("it", 1e14, 1e10, {"copies": (1e12, 1e9), "arithmetic": (1e12, 1e6)})
    (roof,) = shapes(picture, "polyline")
    level = float(roof.get("points").split()[-1].split(",")[1])
    slow, fast = (float(point.get("cy")) for point in shapes(picture, "circle"))
    assert fast == pytest.approx(level, abs=0.2) and slow > level
    assert shapes(roofline("it", 1e14, 1e10, {}), "circle") == []


@pytest.mark.parametrize("seconds, words", [(90, "90 s"), (3000, "50 min"), (72000, "20 h")])
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_workflows_run_what_there_is():
    makefile = (ROOT / "Makefile").read_text()
    steps = {}
    for name in ("cpu", "gpu"):
        workflow = yaml.safe_load((ROOT / ".github/workflows" / f"{name}.yml").read_text())
        (job,) = workflow["jobs"].values()
        steps[name] = [step["run"] for step in job["steps"] if "run" in step]
        for line in steps[name]:
            for module in re.findall(r"-m (bench\.\w+)", line):
                assert (ROOT / f"{module.replace('.', '/')}.py").exists(), line
            for target in re.findall(r"^make (\S+)", line):
                assert re.search(rf"^{target}:", makefile, re.MULTILINE), line
    assert ".ci/run" in steps["cpu"] and (ROOT / ".ci/run").stat().st_mode & 0o100
    assert {"make setup", "make test"} <= set(steps["gpu"])
    assert any("-m bench.gpu" in line for line in steps["gpu"])
