"""A run that is ended at a random moment of every phase and resumed each time loses nothing."""

import random
import shutil
import signal

import pytest
from run_processes import STAGES, contents

SIGNALS = {"SIGKILL": -signal.SIGKILL, "SIGTERM": 143, "SIGINT": 130, "SIGHUP": 129}  # name: exit code
SAYS = {"SIGKILL": "", "SIGTERM": "ditflow: terminated", "SIGINT": "ditflow: interrupted"}
SAYS["SIGHUP"] = "ditflow: the terminal was closed"
CASES = [
    pytest.param(name, id=name, marks=pytest.mark.fault(f"{name} in each phase, resuming after each"))
    for name in SIGNALS
]


@pytest.mark.parametrize("name", CASES)
def test_ended_at_a_random_moment_of_every_phase(fork_server, tmp_path, name):
    run, draw = tmp_path / "run", random.Random(name)
    for stage in STAGES:
        at = 1 + int(draw.uniform(0, 0.95) * fork_server.calls[stage])
        trap = {"stage": stage, "at": at, "signum": getattr(signal, name)}
        go_on = fork_server.resume if run.exists() else fork_server.transfer
        assert go_on(tmp_path, trap=trap, no_cache=stage in ("begin", "text")) == SIGNALS[name], stage

        for file, data in contents(run).items():
            if "/" not in file and not file.startswith("."):
                assert data == fork_server.whole[file], (stage, file)
        error = fork_server.error(tmp_path)
        assert error.startswith(SAYS[name]) and error.count("\n") == bool(SAYS[name]), (stage, error)
        if run.exists() and not (run / "settings.yaml").exists():  # before anything was computed
            assert stage == "begin"
            assert fork_server.resume(tmp_path) == 1
            assert "is not a run folder" in fork_server.error(tmp_path)
            shutil.rmtree(run)
        elif run.exists() and SAYS[name]:
            assert f"`ditflow resume {run.relative_to(tmp_path)}` continues from there" in error
    assert fork_server.resume(tmp_path) == 0, fork_server.error(tmp_path)
    assert contents(run) == fork_server.whole
