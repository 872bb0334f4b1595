"""docs/api.md: its script runs, and it names everything that `ditflow` exports."""

import re

import pytest
from repository import ROOT

import ditflow
from ditflow.small.clips import main as write_made_clip

PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")


def test_the_script_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_made_clip(["clip.mp4", "--seed", "3"])
    script = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
    exec(compile(script, "api.md", "exec"), {})
    told = capsys.readouterr().out
    assert re.search(r"denoise 4/4, loss \d\.\d{3}, 0 s left\n\(24, 64, 96, 3\) 8\.0 \[", told)
    assert (tmp_path / "runs" / "one" / "result.mp4").is_file() and "runs/one {" in told
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("<video") == 2


@pytest.mark.parametrize("name", sorted({*ditflow.__all__} - {"DitflowError", "SettingsError"}))
def test_the_page_names_it(name):
    assert getattr(ditflow, name)
    assert name == "__version__" or re.search(rf"`(ditflow\.)?{name}[(`]", PAGE)


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="has no attribute 'transfers'"):
        ditflow.transfers  # noqa: B018
