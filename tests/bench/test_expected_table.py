"""The rules of bench/expected.csv: what is reported if a measurement differs, and how to accept it."""

import subprocess
import sys

import pytest

from bench.gates.accept import accept, main
from bench.gates.table import TABLE, Row, differences, read, refreshed, report, rows_of, write

ROWS = [
    Row("steps/a", "peak_bytes", 1000, 0.01, "first measured"),
    Row("steps/a", "flops", 500, 0.0, "first measured"),
    Row("compile/k/sm_80", "wide_loads", 4, 0.0, "wider loads"),
]
MEASURED = {"steps/a": {"peak_bytes": 1000, "flops": 500}, "compile/k/sm_80": {"wide_loads": 4}}


def with_value(name, metric, value):
    return MEASURED | {name: MEASURED[name] | {metric: value}}


@pytest.mark.parametrize("value", [990, 1000, 1010])
def test_within_the_margin_nothing_is_found(value):
    assert report(differences(ROWS, with_value("steps/a", "peak_bytes", value))) == ""


@pytest.mark.parametrize(
    "name, metric, value, line",
    [
        ("steps/a", "peak_bytes", 1011, "1,000 -> 1,011, +1.10 %: a regression"),
        ("steps/a", "peak_bytes", 989, "1,000 -> 989, -1.10 %: an unexplained win"),
        ("steps/a", "flops", 501, "500 -> 501, +0.20 %: a regression"),
        ("compile/k/sm_80", "wide_loads", 3, "4 -> 3, -25.00 %: a change"),
        ("steps/a", "copied_bytes", 7, "nothing -> 7, a missing row"),
    ],
)
def test_what_is_found(name, metric, value, line):
    found = report(differences(ROWS, with_value(name, metric, value))).splitlines()
    assert found[0] == f"{name} {metric}: {line}"
    assert len(found) == 2
    assert 'make bench-accept REASON="' in found[1]


def test_growth_from_nothing_is_found():
    row = Row("graphs/a", "graph_breaks", 0, 0.0, "")
    (difference,) = differences([row], {"graphs/a": {"graph_breaks": 1}})
    assert str(difference) == "graphs/a graph_breaks: 0 -> 1, +1: a regression"


def test_a_stale_row_is_found():
    (difference,) = differences(ROWS, MEASURED | {"steps/a": {"peak_bytes": 1000}})
    assert str(difference) == "steps/a flops: 500 -> nothing, a stale row: nothing measures it any more"


def test_a_gate_answers_for_its_own_rows():
    assert rows_of("steps", ROWS) == ROWS[:2]
    assert rows_of("step", ROWS) == []


def test_a_table_read_again_is_the_same(tmp_path):
    rows = [*ROWS, Row("a/b", "modules", 7, 0.1, 'a reason, with "quotes"')]
    write(rows, tmp_path / "expected.csv")
    assert read(tmp_path / "expected.csv") == rows
    assert read(tmp_path / "absent.csv") == []


def test_rows_that_a_merge_has_doubled_are_refused(tmp_path):
    write([*ROWS, ROWS[0]], tmp_path / "expected.csv")
    with pytest.raises(ValueError, match="more than one row of steps/a peak_bytes; keep one of each"):
        read(tmp_path / "expected.csv")


def test_the_committed_table_says_why():
    rows = read()
    assert rows
    assert all(row.reason and row.margin <= 0.1 for row in rows), f"{TABLE}: a row without a reason"


def test_rows_that_hold_keep_value_and_reason():
    measured = with_value("steps/a", "flops", 600) | {"new": {"peak_bytes": 5}}
    measured["steps/a"] = measured["steps/a"] | {"peak_bytes": 1009}
    del measured["compile/k/sm_80"]
    assert refreshed(ROWS, measured, "another product") == [
        ROWS[0],
        Row("steps/a", "flops", 600, 0.0, "another product"),
        Row("new", "peak_bytes", 5, 0.001, "another product"),
    ]


def gates(measured):
    return {name: lambda name=name: {name: measured[name]} for name in measured}


def test_accepting_shows_and_writes_what_changed(tmp_path, capsys):
    path = tmp_path / "expected.csv"
    write(ROWS, path)
    accept(gates(with_value("steps/a", "flops", 600)), "another product", path)
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        "steps/a flops: 500 -> 600, +20.00 %: a regression",
        "expected.csv: 1 rows changed: another product",
    ]
    rows = read(path)
    assert [row.reason for row in rows] == ["first measured", "another product", "wider loads"]
    assert [row.expected for row in rows] == [1000, 600, 4]


def test_accepting_nothing_writes_nothing(tmp_path, capsys):
    path = tmp_path / "expected.csv"
    write(ROWS, path)
    before = path.stat().st_mtime_ns
    accept(gates(MEASURED), "no reason to", path)
    assert "every row holds" in capsys.readouterr().out
    assert path.stat().st_mtime_ns == before


def test_a_gate_that_fails_leaves_the_table_as_it_was(tmp_path):
    path = tmp_path / "expected.csv"
    write(ROWS, path)

    def broken():
        raise RuntimeError("cannot be measured")

    with pytest.raises(RuntimeError):
        accept(gates(with_value("steps/a", "flops", 600)) | {"broken": broken}, "why", path)
    assert read(path) == ROWS
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("words", [[], [""], ["  "]], ids=["absent", "empty", "blank"])
def test_no_reason_is_refused(words, capsys):
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.err == 'bench-accept: no reason given; say why: make bench-accept REASON="..."\n'
    assert captured.out == ""


def test_a_refusal_does_not_wait_for_torch():
    code = "import sys; from bench.gates.accept import main; main([]); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=TABLE.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
