"""Job files of every kind make the same jobs, and a wrong one is refused before anything runs."""

import json

import pytest
import yaml

from ditflow.batch import jobs_file
from ditflow.batch.jobs import check_jobs
from ditflow.batch.jobs_file import read_rows
from ditflow.errors import SettingsError
from ditflow.jobs.transfer import transfer

PROMPTS = "a red circle", "a blue square"


@pytest.fixture
def folder(tmp_path, monkeypatch, clip):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip.mp4").symlink_to(clip)
    return tmp_path


def read(folder, name, text):
    (folder / name).write_text(text, encoding="utf-8")
    return check_jobs(read_rows(folder / name), folder / "batch")


ROWS = [
    {"video": "clip.mp4", "prompt": prompt, "model": "small", "seed": seed, "guidance_blocks": [2, 3]}
    for prompt in PROMPTS
    for seed in (0, 1)
]
CSV = "video,prompt,model,seed,guidance_blocks\n" + "".join(
    f'clip.mp4,{row["prompt"]},small,{row["seed"]},"2, 3"\n' for row in ROWS
)
PRODUCT = {
    "common": {"model": "small", "guidance_blocks": [2, 3]},
    "each": {"video": ["clip.mp4"], "prompt": [*PROMPTS], "seed": [0, 1]},
}


def test_every_kind_of_file_makes_the_same_jobs(folder):
    texts = {
        "jobs.yaml": yaml.safe_dump(ROWS),
        "product.yml": yaml.safe_dump(PRODUCT),
        "jobs.jsonl": "\n".join(map(json.dumps, ROWS)) + "\n\n",
        "jobs.csv": "\ufeff" + CSV,
    }
    found = {name: read(folder, name, text) for name, text in texts.items()}
    wanted = [(prompt, seed) for prompt in PROMPTS for seed in (0, 1)]
    for name, jobs in found.items():
        assert [(job.settings.prompt, job.settings.seed) for job in jobs] == wanted, name
        assert [job.number for job in jobs] == [1, 2, 3, 4]
        assert all(job.settings.guidance_blocks == (2, 3) for job in jobs)
        assert all(job.settings.video == str((folder / "clip.mp4").resolve()) for job in jobs)
        assert all(job.folder.parent == folder / "batch" and not job.finished for job in jobs)
        assert len({job.folder for job in jobs}) == 4


def test_each_multiplies_jobs_and_a_mapping_gives_several_settings(folder):
    product = {
        "common": {"model": "small", "prompt": "a red circle", "video": "clip.mp4", "seed": 5},
        "each": {"part": [{"start": 1}, {"start": 2, "stride": 2}], "steps": [3, 4]},
        "jobs": [{"seed": 6}, {"loss": "x0"}],
    }
    jobs = read(folder, "jobs.yaml", yaml.safe_dump(product))
    made = [(job.settings.seed, job.settings.loss, job.settings.start, job.settings.steps) for job in jobs]
    assert made == [
        (seed, loss, start, steps)
        for seed, loss in ((6, "flow"), (5, "x0"))
        for start in (1, 2)
        for steps in (3, 4)
    ]
    assert {job.settings.stride for job in jobs if job.settings.start == 2} == {2}
    jobs = read(folder, "one.yaml", yaml.safe_dump({"common": product["common"]}))
    assert [job.settings.seed for job in jobs] == [5]


def test_a_default_folder_stays_when_other_jobs_come(folder):
    last = read(folder, "jobs.yaml", yaml.safe_dump(ROWS))[-1]
    first = read(folder, "jobs.yaml", yaml.safe_dump(ROWS[::-1]))[0]
    assert first.folder == last.folder and first.number != last.number
    assert last.folder.name.startswith("clip-a-blue-square-")


def test_an_empty_cell_is_not_given(folder):
    (job,) = read(folder, "jobs.csv", "video,prompt,model,steps\nclip.mp4,a red circle,small,\n")
    assert (
        job.settings.steps
        == read(folder, "b.csv", "video,prompt,model\nclip.mp4,x,small\n")[0].settings.steps
    )


BAD = {
    "unknown setting": ("jobs.csv", "prompt,sed\na,1\n", r"jobs.csv, line 2: unknown setting 'sed'.*'seed'"),
    "path": ("jobs.csv", "prompt,path\na,x\n", "line 2: unknown setting 'path'"),
    "value": (
        "jobs.csv",
        "video,prompt,model,steps\nclip.mp4,a,small,3\nclip.mp4,a,small,x\n",
        "line 3: steps",
    ),
    "cells": ("jobs.csv", "video,prompt\nclip.mp4\n", "line 2: expected 2 cells"),
    "column twice": ("jobs.csv", "prompt,prompt\na,b\n", "a column's name is given twice"),
    "quotes": ("jobs.csv", 'prompt\n"a\n', "give valid CSV"),
    "not JSON": ("jobs.jsonl", '{"prompt": "a"}\n{\n', "line 2: .*give one JSON object in each line"),
    "no mapping": ("jobs.jsonl", "[1]\n", "line 1: expected lines of `name: value`"),
    "no clip": ("jobs.yaml", "[{prompt: a, model: small}]", "job 1: video: nothing given"),
    "absent clip": (
        "jobs.yaml",
        "[{prompt: a, video: no.mp4, model: small}]",
        "job 1: no.mp4 does not exist",
    ),
    "no prompt": ("jobs.yaml", "[{video: clip.mp4, model: small}]", "job 1: prompt: nothing given"),
    "device": (
        "jobs.yaml",
        "[{video: clip.mp4, prompt: a, model: small, device: 'cuda:1'}]",
        "accepted in a batch: auto, cpu, cuda",
    ),
    "twice": (
        "jobs.yaml",
        "[{video: clip.mp4, prompt: a, model: small}, {video: clip.mp4, prompt: a, model: small}]",
        r"job 2: .* is the run folder of .*job 1 too",
    ),
    "same output": (
        "jobs.yaml",
        "common: {video: clip.mp4, prompt: a, model: small, output: x}\neach: {seed: [1, 2]}",
        "job 2: .* is the run folder of",
    ),
    "output elsewhere": (
        "jobs.yaml",
        "[{video: clip.mp4, prompt: a, model: small, output: ../../x}]",
        "job 1: output .* is neither in the file's folder",
    ),
    "output at home": (
        "jobs.yaml",
        "[{video: clip.mp4, prompt: a, model: small, output: ~/x}]",
        "job 1: output .* is neither in the file's folder",
    ),
    "other parts": ("jobs.yaml", "{video: clip.mp4}", "expected a list of jobs, or only common, each, jobs"),
    "each without a list": ("jobs.yaml", "each: {seed: 1}", "each, seed: expected a list of values"),
    "too many": (
        "jobs.yaml",
        yaml.safe_dump({"each": {n: [*range(30)] for n in "abc"}}),
        "more than 10000 jobs",
    ),
    "no job": ("jobs.jsonl", "\n", "has no job"),
    "other file": ("jobs.txt", "x", r"give a file named \*.yaml"),
}


@pytest.mark.parametrize("name, text, message", BAD.values(), ids=BAD)
def test_a_wrong_file_is_refused(folder, name, text, message):
    with pytest.raises(SettingsError, match=message):
        read(folder, name, text)
    assert not (folder / "batch").exists()


def test_a_file_with_more_lines_than_jobs_are_allowed(folder, monkeypatch):
    monkeypatch.setattr(jobs_file, "BATCH_JOBS", 3)
    for name, text in (("jobs.csv", CSV), ("jobs.jsonl", "\n".join(map(json.dumps, ROWS)))):
        with pytest.raises(SettingsError, match="more than 3 jobs: split it"):
            read(folder, name, text)


def test_a_folder_with_a_run_of_other_settings_is_refused(folder, settings):
    run = transfer(settings)
    values = {"video": settings.video, "prompt": settings.prompt, "output": "run"}
    text = run.settings().to_yaml()
    same = yaml.safe_load(text) | values
    (job,) = read(folder, "jobs.yaml", yaml.safe_dump([same]))
    assert job.finished and job.folder == run.folder
    with pytest.raises(SettingsError, match="job 1: .*holds a run with seed 1, and 3 is asked for"):
        read(folder, "jobs.yaml", yaml.safe_dump([same | {"seed": 3}]))
