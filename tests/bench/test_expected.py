"""bench/gates measures what bench/expected.csv says, and finds faults planted in the code."""

import pytest
import torch

from bench.gates import graphs, imports, steps
from bench.gates.gate import gates
from bench.gates.saved import SavedBytes
from bench.gates.table import differences, read, report, rows_of
from bench.subjects import compiled_functions
from ditflow.guidance import losses
from ditflow.models.cogvideox import transformer as cogvideox
from ditflow.planning.phases import Phases
from ditflow.settings import Settings

MIB = 1 << 20
GATES = gates()
HERE = [name for name in GATES if name != "compile"]  # that one runs in tests/compile
STEP = "steps/2b-24/optimise-none"


@pytest.mark.parametrize("name", HERE)
def test_gate(name):
    found = report(differences(rows_of(name, read()), GATES[name]()))
    assert not found, found


def test_every_row_is_answered_for():
    rows = read()
    assert set(rows) == {row for name in GATES for row in rows_of(name, rows)}


@pytest.fixture
def planted(monkeypatch):
    """Adds a term to the loss of a guided step; returns what its gate finds: lines by metric."""

    def measured(extra):
        real = losses.motion_flow_loss
        monkeypatch.setattr(
            losses,
            "motion_flow_loss",
            lambda query, key, *given, **options: real(query, key, *given, **options) + extra(query, key),
        )
        found = steps.optimise(Phases(Settings(model="2b", frames=24)), "none")
        rows = [row for row in read() if row.name == STEP]
        return {each.metric: str(each) for each in differences(rows, {STEP: found})}

    return measured


def test_a_planted_map_of_all_pairs_is_found(planted):
    """[S, S], without a matrix product, saved for backward."""
    found = planted(lambda query, key: (query.mean((1, 2))[:, None] * key.mean((1, 2))[None]).exp().mean())
    assert found.keys() == {"peak_bytes", "saved_bytes"}
    assert all(line.endswith("a regression") for line in found.values())


def test_a_planted_product_is_found(planted):
    found = planted(lambda query, key: (query.flatten(1).T @ key.flatten(1)).mean())
    assert found["flops"].endswith("a regression")


def test_a_planted_graph_break_is_found(monkeypatch):
    real = cogvideox.qk_norm_rope

    def broken(*given):
        torch._dynamo.graph_break()
        return real(*given)

    monkeypatch.setattr(cogvideox, "qk_norm_rope", broken)
    call, given = compiled_functions("5b")["prepare"]
    found = {"graphs/5b/prepare": {"graph_breaks": graphs.breaks(call, *given)}}
    rows = [row for row in read() if row.name in found]
    (difference,) = differences(rows, found)
    assert "graph_breaks: 0 -> " in str(difference)
    torch._dynamo.reset()


def test_a_planted_import_is_found():
    found = imports.measure(
        imports.HELP.replace("from ditflow.cli.main", "import numpy; from ditflow.cli.main")
    )
    (difference,) = differences(rows_of("imports", read()), found)
    assert str(difference).endswith("a regression")


def test_saved_bytes_are_those_that_graphs_hold():
    """Each storage counts once, as long as its graph lives; storages from before do not count."""
    x = torch.ones(MIB // 4, requires_grad=True)
    with SavedBytes([x]) as saved:
        y = x.exp()  # saved: its gradient needs it
        z = (y * y * x).sum()  # y again, y * y
        assert saved.bytes == saved.peak_bytes == 2 * MIB
        torch.autograd.grad(z, x)
        assert saved.bytes == 0
        x.exp().exp().exp()  # backward never runs
        assert (saved.bytes, saved.peak_bytes) == (0, 3 * MIB)
