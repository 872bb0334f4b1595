"""A run that is ended at a random moment of any stage: nothing is half there, and it is gone on with."""

import random
import signal

import pytest
from nursery import STAGES, contents

SIGNALS = {"SIGKILL": -signal.SIGKILL, "SIGTERM": 143, "SIGINT": 130}  # and the exit codes
WORDS = {
    "begin": "before the first phase",
    "text": "while prompts are encoded",
    "encode": "while the clip is encoded",
    "denoise": "while denoising",
    "decode": "while decoding",
    "write": "while the results are written",
}
CASES = [
    pytest.param(name, stage, marks=pytest.mark.fault(f"{name} {WORDS[stage]}"), id=f"{name}-{stage}")
    for stage in STAGES
    for name in SIGNALS
]


@pytest.mark.parametrize("name, stage", CASES)
def test_ended_at_a_random_moment(nursery, tmp_path, name, stage):
    moment = random.Random(f"{name} {stage}").uniform(0, 0.95)
    trap = {"stage": stage, "at": 1 + int(moment * nursery.calls[stage]), "signum": getattr(signal, name)}
    assert nursery.transfer(tmp_path, trap=trap, no_cache=stage == "text") == SIGNALS[name]

    left = contents(tmp_path / "run")
    for file, data in left.items():
        if "/" not in file and not file.startswith("."):
            assert data == nursery.whole[file], file
    words = "" if name == "SIGKILL" else "terminated" if name == "SIGTERM" else "interrupted"
    error = nursery.error(tmp_path)
    assert error.startswith(f"ditflow: {words}" if words else "") and error.count("\n") == bool(words)

    if "settings.yaml" not in left:  # nothing was computed yet, and there is nothing to go on from
        assert stage == "begin"
        assert nursery.resume(tmp_path) == 1
        assert "is no run folder" in nursery.error(tmp_path)
        return
    assert nursery.resume(tmp_path) == 0, nursery.error(tmp_path)
    assert contents(tmp_path / "run") == nursery.whole
