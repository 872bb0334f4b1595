"""Batches on real Ray: `make test-batch`. Fails without Ray."""

import csv
import os
import sys
from argparse import Namespace
from dataclasses import replace

import pytest
import torch
import yaml
from batch_workers import count_encodings
from ray.cluster_utils import Cluster as LocalCluster
from ray_jobs import values
from tiny_pipelines import latents

from ditflow.batch.command import run_jobs
from ditflow.batch.jobs import check_jobs
from ditflow.batch.run import INDEX, PAGE
from ditflow.batch.worker import Worker
from ditflow.cli.batch_table import Lines
from ditflow.cli.main import main
from ditflow.jobs.transfer import transfer
from ditflow.run_folder.run import Run

NODE = {"num_cpus": 1, "object_store_memory": 1 << 27}
PROMPTS = "a red circle on a blue background", "a blue square on a white background"


@pytest.fixture
def nodes():
    """A cluster of two nodes on this machine, and the second one, which may be taken away."""
    cluster = LocalCluster(initialize_head=True, head_node_args=NODE)
    try:
        second = cluster.add_node(**NODE)
        yield cluster, second
    finally:
        cluster.shutdown()


class Killer(Lines):
    """Takes a node away once, while both workers are between two steps."""

    def __init__(self, cluster, node):
        super().__init__()
        self.cluster, self.node, self.tries = cluster, node, []

    def look(self, queue):
        events = [entry.event for entry in queue.running.values()]
        amid = [
            event for event in events if event and event.phase == "denoise" and 0 < event.step < event.steps
        ]
        if self.node and queue.count("done") >= 3 and len(amid) == 2:
            self.cluster.remove_node(self.node, allow_graceful=False)
            self.node = None

    def changed(self, entry):
        super().changed(entry)
        self.tries.append((entry.job.number, entry.state, entry.error))


def test_a_node_is_lost_amid_24_jobs(nodes, clip, small_folder, tmp_path):
    cluster, second = nodes
    rows = [
        (f"job {start} {seed}", values(clip, small_folder, start=start, prompt=prompt, seed=seed, steps=16))
        for start in (0, 1, 2, 3)
        for prompt in PROMPTS
        for seed in (0, 1, 2)
    ]
    output, killer = tmp_path / "batch", Killer(cluster, second)
    jobs = check_jobs(rows, output)
    options = Namespace(workers=None, address=cluster.address, retries=5)
    entries = run_jobs(jobs, options, output, killer)

    assert len(entries) == 24 and {entry.state for entry in entries} == {"done"}
    assert killer.node is None
    assert [number for number, state, error in killer.tries if state == "waiting" and "died" in error]
    with (output / INDEX).open(newline="") as file:
        assert [row["state"] for row in csv.DictReader(file)] == ["done"] * 24
    assert (output / PAGE).stat().st_size > 0
    resumed = [entry for entry in entries if Run.open(entry.job.folder).record()["resumed"]]
    assert 1 <= len(resumed) <= 2
    for entry in entries:
        alone = transfer(replace(entry.job.settings, output=f"{entry.job.folder}-alone"))
        assert torch.equal(latents(alone), latents(Run.open(entry.job.folder))), entry.job


def test_the_command_on_this_machine(clip, small_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    common = values(clip, small_folder)
    jobs = {"common": common, "jobs": [{"seed": 0}, {"seed": 1, "output": "mine"}, {"seed": 2}]}
    (tmp_path / "jobs.yaml").write_text(yaml.safe_dump(jobs))
    assert main(["batch", "jobs.yaml", "--workers", "2"]) == 1
    told = capsys.readouterr()
    assert "1 of 3 jobs failed" in told.err and "mine exists and is not a run folder" in told.err
    (tmp_path / "mine" / "file").unlink()
    assert main(["batch", "jobs.yaml", "--workers", "1", "--quiet"]) == 0
    again = capsys.readouterr()
    assert again.out == "batch/index.csv\n"
    with (tmp_path / "batch" / INDEX).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["done"] * 3
    assert [bool(row["seconds"]) for row in rows] == [False, True, False]  # only what was missing has run


def test_two_workers_encode_each_text_and_clip_once(clip, small_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "encoded"

    class Counting(Worker):
        def ready(self, *given):
            count_encodings(file)
            return super().ready(*given)

    monkeypatch.setattr("ditflow.batch.cluster.Worker", Counting)
    parts = [(start, prompt) for start in (0, 2) for prompt in PROMPTS]
    rows = [(f"job {part}", values(clip, small_folder, start=part[0], prompt=part[1])) for part in parts]
    output = tmp_path / "batch"
    options = Namespace(workers=2, address=None, retries=0)
    entries = run_jobs(check_jobs(rows, output), options, output, Lines())
    assert {entry.state for entry in entries} == {"done"}
    assert sorted(file.read_text().split()) == ["clip"] * 2 + ["text"] * 3  # and the empty negative prompt
