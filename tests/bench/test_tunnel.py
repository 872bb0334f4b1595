"""The wind tunnel: two pairs in every stage, planted modes, the command, and the committed tables."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from bench.report import ROOT
from bench.tables import tunnel_tables
from bench.tunnel import __main__ as tunnel
from bench.tunnel import stages
from bench.tunnel.modes import read_mode
from bench.tunnel.page import TEMPLATE, tunnel_page
from bench.tunnel.runs import Session
from bench.tunnel.stages import CONTROL, EXACT, STAGES
from ditflow.small.vocabulary import COLOURS

MEASURES = {"path_fidelity", "path_error", "reach", "prompt_match", "latents"}
DIRECTED = {  # the first one says whether results do what the settings ask for
    "directed-drawn": ["path_fidelity", "path_error", "reach", "growth_error", "prompt_match"],
    "directed-scale": ["path_fidelity", "reach", "prompt_match"],
    "directed-mask": ["masked_fidelity", "other_fidelity", "reach", "prompt_match"],
    "directed-camera": ["ground_reach", "ground_seen", "object_fidelity", "prompt_match"],
}


@pytest.fixture
def tiny(small_folder, monkeypatch):
    """Every stage as it is, but with a random model, short clips and few steps; most have one variant."""
    short = {"frames": 9, "size": "48x32", "steps": 3, "guided": 0.34, "optimisation_steps": 2}
    short |= {"guidance_blocks": [2], "guidance_scale": 2, "negative_prompt": "", "injection": False}
    short |= {"model": str(small_folder), "device": "cpu", "dtype": "float32"}
    short |= {"scheduler": "dpm", "dynamic_scale": True}  # of every variant
    for name, stage in STAGES.items():
        count = 2 if name == "unguided" else 1
        few = dict(list(stage.variants.items())[:count])
        variants = {word: {**changes, **short} for word, changes in few.items()}
        kept = {key: value for key, value in stage.settings.items() if key == "transfer"}
        monkeypatch.setitem(STAGES, name, replace(stage, settings=kept, pairs=2, variants=variants))


def rows(table):
    return {row["mode"]: row for row in table["modes"]}


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("gradients", "gradients=1"),
        ("unguided", "dtype=bfloat16"),
        ("guided", "gradients=1"),
        ("negative", "fast"),
        ("speeds", "faster"),
        ("guided-small", "no-op"),
        ("wan", "loss=smm"),
        ("rates", "gradients=1"),
        ("directed-drawn", "backbone"),
        ("directed-scale", "motion_scale=2"),
        ("directed-mask", "gradients=1"),
        ("directed-camera", "no-op"),
    ],
)
def test_two_pairs_in_every_stage(name, word, tiny, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tunnel.main([word, "--stage", name, "--json"])
    assert not list(tmp_path.iterdir()), "something is left behind"
    document = json.loads(capsys.readouterr().out)
    assert document["kind"] == "tunnel" and document["commit"] and document["date"]
    assert len(document["tables"]) == len(STAGES[name].variants)
    for table in document["tables"]:
        found = rows(table)
        assert list(found) == [EXACT, *([] if name in DIRECTED else [CONTROL]), word] and table["count"] == 2
        assert all(np.isfinite(list(pair.values())).all() for row in found.values() for pair in row["pairs"])
        if name == "gradients":
            exact = found[EXACT]["numbers"]
            assert exact["distance"]["mean"] == 0 and exact["cosine"]["mean"] == pytest.approx(1)
            assert all(pair["distance"] > 0 for mode in (CONTROL, word) for pair in found[mode]["pairs"])
            assert "verdict" not in found[word]
            continue
        if name in DIRECTED:
            assert list(found[EXACT]["numbers"]) == DIRECTED[name] and "verdict" not in found[word]
            assert (found[word]["pairs"] == found[EXACT]["pairs"]) == (word == "no-op")
            continue
        assert set(found[EXACT]["numbers"]) == MEASURES
        assert all(pair["latents"] > 0 for pair in found[CONTROL]["pairs"])
        assert all((pair["latents"] > 0) == (word != "no-op") for pair in found[word]["pairs"])
        if word == "no-op":
            assert found[word]["pairs"] == found[EXACT]["pairs"] and found[word]["verdict"] == "same"


def test_every_stage_is_tested():
    (marks,) = (mark for mark in test_two_pairs_in_every_stage.pytestmark if mark.name == "parametrize")
    assert {name for name, _ in marks.args[1]} == STAGES.keys()


@pytest.fixture
def drawn(tiny, monkeypatch):
    """Results are the clip itself; with `rows=all` its object stands still, with `reference=soft` is gone."""
    clips, real = {}, stages.outcome

    def outcome(pair, tried, latents):
        clips[pair.prompt] = pair.clip.frames
        return real(pair, tried, latents)

    def frames(tried, latents):
        shown = clips[tried.settings.prompt].copy()
        if tried.settings.rows == "all":
            shown[:] = shown[0]
        if tried.settings.reference == "soft":
            shown[:] = COLOURS["red"]
        return shown

    monkeypatch.setattr(stages, "outcome", outcome)
    monkeypatch.setattr(Session, "frames", frames)


def test_planted_harm_is_worse_and_nothing_is_the_same(drawn):
    (table,) = tunnel.run("guided", list(map(read_mode, ("no-op", "rows=all", "reference=soft"))), 2, 5)
    found = rows(table)
    assert found[EXACT]["numbers"]["path_fidelity"]["mean"] > 0.99
    assert found[EXACT]["numbers"]["path_error"]["mean"] < 0.01
    assert {mode: row.get("verdict") for mode, row in found.items()} == {
        EXACT: None,
        CONTROL: "same",
        "no-op": "same",
        "rows=all": "worse",
        "reference=soft": "worse",
    }
    assert found["rows=all"]["worst"] == pytest.approx(-1, abs=0.01)
    assert found["reference=soft"]["pairs"][0]["path_error"] == 1


def numbers(fidelity, error=0.1):
    return {"path_fidelity": fidelity, "path_error": error, "reach": 0.8, "prompt_match": 1.0}


def test_differences_are_paired():
    """Pairs differ by far more than modes do, which does not matter."""
    found = [
        {
            EXACT: numbers(exact) | {"latents": 0.0},
            "lost": numbers(exact - 0.1 - noise) | {"latents": 0.3},
            "kept": numbers(exact + noise) | {"latents": 0.1},
        }
        for exact, noise in zip((0.9, 0.2, 0.6, 0.4), (0.001, -0.002, 0.0, 0.001), strict=True)
    ]
    table = {"stage": "guided", "variant": ""} | tunnel.summary(found, {"lost": {"rows": "all"}})
    lost, kept = rows(table)["lost"], rows(table)["kept"]
    assert lost["verdict"] == "worse" and kept["verdict"] == "same"
    assert lost["changes"] == {"rows": "all"}
    assert lost["numbers"]["path_fidelity"]["mean"] == pytest.approx(-0.1)
    assert lost["numbers"]["path_fidelity"]["half_width"] < 0.01
    assert lost["numbers"]["latents"]["mean"] == 0.3
    assert lost["worst"] == pytest.approx(-0.101)
    text = tunnel_tables([table])
    assert "| guided (4 pairs) | path fidelity | path error |" in text
    assert (
        "| lost | -0.100 ± 0.002 | +0.000 ± 0.000 |" in text and "| 0.300 ± 0.000 | -0.101 | worse |" in text
    )
    assert "| exact | 0.525 ± 0.475 |" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stepps=3"], "'steps'"),
        (["nothing"], "accepted are no-op"),
        (["steps=4"], "the same for all modes"),
        (["no-op", "no-op"], "given twice"),
        (["--pairs", "0"], "--pairs from 1"),
        (["--seed", "-1"], "--seed from 0"),
    ],
)
def test_bad_words_are_explained(words, said, capsys):
    with pytest.raises(SystemExit):
        tunnel.main(words)
    assert said in capsys.readouterr().err


def committed():
    return [json.loads(path.read_text()) for path in sorted((ROOT / "bench/results").glob("tunnel-*.json"))]


def test_committed_tables_are_of_the_stages_as_they_are():
    for document in committed():
        assert not document["commit"].endswith("+")
        for table in document["tables"]:
            stage = STAGES[table["stage"]]
            assert 1 < table["count"] <= stage.pairs and table["about"] == stage.about
            control = [] if table["stage"] in DIRECTED else [CONTROL]
            assert list(rows(table)) == [EXACT, *control, *stage.modes]
            settings = {**stage.settings, **stage.variants[table["variant"]]}
            assert table["settings"] == json.loads(json.dumps(settings))


def test_committed_verdicts_follow_from_their_pairs():
    for document in committed():
        for table in document["tables"]:
            found = [
                {row["mode"]: row["pairs"][index] for row in table["modes"]}
                for index in range(table["count"])
            ]
            changes = {row["mode"]: row["changes"] for row in table["modes"]}
            judged = STAGES[table["stage"]].judged
            summary = tunnel.summary(found, changes, judged)
            assert summary == {name: table[name] for name in ("count", "modes")}


def test_the_page_says_what_is_not_measured():
    text = tunnel_page([])
    assert text.count("**Not measured.**") == len(STAGES) and "±0.02" in text and "$" not in text
    (document, *_) = committed()
    text = tunnel_page([document])
    assert text.count("**Not measured.**") == len(STAGES) - 1
    assert document["commit"] in text
    assert all(tunnel_tables([table]) in text for table in document["tables"])


def test_the_page_says_where_same_means_little():
    found = [{EXACT: numbers(0.1 * index), "backbone": numbers(0.1 * index)} for index in range(3)]
    table = {"stage": "rates", "variant": "", "about": "it"} | tunnel.summary(found, {})
    document = {"date": "then", "commit": "abc", "torch": "2", "seed": 1, "tables": [table]}
    assert rows(table)["backbone"]["verdict"] == "same" and "**Here a run" in tunnel_page([document])
    for pair in found:
        pair["backbone"]["path_fidelity"] -= 0.5
    document["tables"] = [table | tunnel.summary(found, {})]
    assert "**Here a run" not in tunnel_page([document])


@pytest.mark.parametrize(("lost", "said"), [((0.1, 0.12, 0.1), False), ((0.1, -0.2, 0.1), True)])
def test_the_page_says_what_is_not_known_to_work(lost, said):
    """Where a run without guidance has as much of a stage's first number."""
    found = [
        {EXACT: {"ground_reach": 0.5, "reach": 0.1}, "backbone": {"ground_reach": 0.5 - each, "reach": 0.9}}
        for each in lost
    ]
    table = {"stage": "directed-camera", "variant": "small", "about": "it"}
    table |= tunnel.summary(found, {}, judged=False)
    text = tunnel_page([{"date": "then", "commit": "abc", "torch": "2", "seed": 1, "tables": [table]}])
    assert ("not known to have less ground reach" in text) == said
    assert "| exact | 0.500 ± 0.000 | 0.100 ± 0.000 |" in text


def test_the_template_has_no_measured_number():
    assert not re.search(r"±\s*\d|\d\.\d{2}", TEMPLATE.read_text().replace("0.015", ""))


def test_make_tunnel_measures_every_stage():
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^STAGES \?= (.*)$", makefile, re.MULTILINE)[1].split() == list(STAGES)


def test_the_small_models_page_quotes_the_tables():
    text = (ROOT / "ditflow/small/README.md").read_text(encoding="utf-8")
    quoted = {"small"} | STAGES["rates"].variants.keys()
    tables = [
        table for each in committed() for table in each["tables"] if table["stage"] in ("unguided", "rates")
    ]
    found = [rows(each)[EXACT]["numbers"]["path_fidelity"] for each in tables if each["variant"] in quoted]
    assert len(found) == 3
    for each in found:
        assert f"{each['mean']:.2f} ± {each['half_width']:.2f}" in text
