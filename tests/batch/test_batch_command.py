"""`ditflow batch` on the command line, with workers in this process."""

import json
import socket
import sys
from types import SimpleNamespace

import pytest
from batch_workers import InProcess

from ditflow.cli.main import main
from ditflow.settings.values import plain


@pytest.fixture
def jobs(settings, tmp_path, monkeypatch):
    """A file of two jobs, the second of which is refused by its model."""
    monkeypatch.chdir(tmp_path)
    common = {name: plain(value) for name, value in vars(settings).items() if name != "output"}
    rows = [common, common | {"guidance_blocks": [999]}]
    (tmp_path / "jobs.yaml").write_text(json.dumps(rows))
    return rows


@pytest.fixture
def with_workers(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace())
    monkeypatch.setattr("ditflow.batch.cluster.Cluster", lambda folder, *_: InProcess(folder))


def test_a_failed_job_makes_the_exit_code(jobs, with_workers, tmp_path, capsys):
    assert main(["batch", "jobs.yaml", "--output", "all", "--retries", "0"]) == 1
    told = capsys.readouterr().err.splitlines()
    assert told[0] == f"worker 1 of 1 is ready on {socket.gethostname()}"
    assert told[-1].startswith("ditflow: 1 of 2 jobs failed, the first one with: ")
    assert "999" in told[-1] and told[-1].endswith("see all/index.csv")

    (tmp_path / "jobs.yaml").write_text(json.dumps(jobs[:1]))
    assert main(["batch", "jobs.yaml", "--output", "all", "--quiet"]) == 0
    said = capsys.readouterr()
    assert said.out == "all/index.csv\n" and not said.err


def test_a_wrong_file_is_a_wrong_usage(with_workers, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs.csv").write_text("prompt,sed\na,1\n")
    assert main(["batch", "jobs.csv"]) == 2
    assert capsys.readouterr().err.startswith("ditflow: jobs.csv, line 2: unknown setting 'sed'")


def test_without_ray_it_says_what_to_install(jobs, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["batch", "jobs.yaml"]) == 1
    assert 'pip install "ditflow[batch]"' in capsys.readouterr().err


@pytest.mark.parametrize("number", ["0", "-1", "x", "1.5"])
def test_wrong_numbers_of_workers(number, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["batch", "jobs.yaml", f"--workers={number}"])
    assert ended.value.code == 2 and "accepted: a number from 1" in capsys.readouterr().err
