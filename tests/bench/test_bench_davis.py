"""The DAVIS protocol on two generated clips: its runs, continuing after a stop, and its table."""

import json

import pytest
import yaml
from batch_workers import InProcess

from bench import davis
from bench.davis import PUBLISHED, main, table
from ditflow import video
from ditflow.errors import DitflowError
from ditflow.evaluation import tracks
from ditflow.small.clips import FRAME_RATE, made_clip


@pytest.fixture
def words(tmp_path, small_folder):
    """The command for two clips, a folder of images and a video, with the small model and few steps."""
    prompts = {}
    for seed, name in ((0, "one.mp4"), (5, "two")):
        clip = made_clip(seed, frames=14)
        video.write_clip(video.Clip(clip.frames, FRAME_RATE), tmp_path / "videos" / name)
        prompts[name.removesuffix(".mp4")] = {"caption": clip.caption, "subject": "a dog", "scene": "a room"}
    prompts["two"] |= {"start": 3, "frames": 10}
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    config = {"negative_prompt": "", "dtype": "float32", "device": "cpu", "size": "32x32", "frames": 9}
    config |= {
        "guidance_blocks": [2],
        "guidance_scale": 1,
        "steps": 2,
        "guided": 0.5,
        "optimisation_steps": 1,
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    given = {"videos": "videos", "prompts": "prompts.json", "config": "config.yaml", "output": "runs"}
    paths = [word for name, path in given.items() for word in (f"--{name}", str(tmp_path / path))]
    return [
        *paths,
        "--model",
        str(small_folder),
        "--modes",
        "flow,backbone",
        "--tracker",
        "lk",
        "--clip",
        "none",
    ]


def test_two_clips(words, tmp_path, capsys, monkeypatch):
    done, stops = [], [True]

    class Stopping(InProcess):
        def give(self, worker, settings):
            if stops and len(done) == 3:
                stops.clear()
                raise KeyboardInterrupt
            done.append(settings)
            super().give(worker, settings)

    monkeypatch.setattr("ditflow.batch.cluster.Cluster", lambda folder, *_: Stopping(folder))
    monkeypatch.setattr(tracks, "GRID", 10)  # fewer points, less time
    with pytest.raises(KeyboardInterrupt):
        main(words)
    main(words)
    runs = done
    assert len(runs) == 2 * 3 * 2  # each once
    assert len({(run.video, run.prompt, run.guidance) for run in runs}) == 12
    assert {(run.start, run.frames) for run in runs if run.video.endswith("two")} == {(3, 10)}
    assert {(run.start, run.frames) for run in runs if run.video.endswith("one.mp4")} == {(0, 9)}
    last = capsys.readouterr().out.splitlines()[-2:]
    assert [line.split(" | ")[:2] for line in last] == [["| flow", "6"], ["| backbone", "6"]]

    main(words)
    assert len(done) == 12  # nothing is repeated
    assert capsys.readouterr().out.splitlines()[-2:] == last


def result(mode, kind, fidelity, match):
    tracks = {"paper": {"score": fidelity}} if match else None
    scores = {"motion": {"score": 0.5}, "tracks": tracks, "prompt_match": {"clip": match}}
    return {"mode": mode, "kind": kind} | scores


def test_table_beside_the_published_numbers():
    found = [result("flow", "caption", 0.8, 0.3), result("flow", "caption", 0.6, 0.2)]
    found += [result("flow", "scene", 0.1, 0.1), result("flow", "scene", None, None)]
    ours, theirs = table(found, PUBLISHED["5b"]).splitlines()[2:]
    assert ours == "| flow | 4 | 0.700 | 0.250 | - | - | 0.100 | 0.100 | 0.500 | 0.200 | 0.500 |"
    assert theirs == (
        "| flow, published | 150 | 0.790 | 0.316 | 0.775 | 0.321 | 0.789 | 0.319 | 0.785 | 0.319 |  |"
    )
    assert PUBLISHED["2b"]["flow"][-2:] == [0.726, 0.317]


@pytest.mark.parametrize(
    "content, message",
    [
        ("[1", "cannot be used"),
        ('{"one": {"caption": "x", "subject": "y"}}', "each with caption, subject, scene"),
        ('{"absent": {"caption": "x", "subject": "y", "scene": "z"}}', "has no absent"),
    ],
)
def test_bad_prompts(words, tmp_path, content, message):
    (tmp_path / "prompts.json").write_text(content)
    with pytest.raises(DitflowError, match=message):
        davis.read_cases(tmp_path / "videos", tmp_path / "prompts.json")
    with pytest.raises(SystemExit, match=f"bench.davis: .*{message}"):
        main(words)
