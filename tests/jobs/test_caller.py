"""What the caller has set in torch changes no latents and is restored; jobs in threads and in forks."""

import os
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from tiny_pipelines import latents, quick_settings

from ditflow import DitflowError, flow, transfer
from ditflow.evaluation.finished import FinishedRun
from ditflow.evaluation.own_flow import read_own_flow
from ditflow.jobs import checks
from ditflow.jobs.job import Job
from ditflow.memory import torch_state as module
from ditflow.memory.torch_state import WORKSPACE, torch_state
from ditflow.models.cogvideox.text import T5TextEncoder
from ditflow.models.cogvideox.transformer import CogVideoXTransformer
from ditflow.planning import choice
from ditflow.planning.choice import choose_plan

CPU = torch.device("cpu")
MODES = {  # contexts that a caller may be in
    "inference": [torch.inference_mode],
    "no-grad": [torch.no_grad],
    "autocast-meta-anomaly": [
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: torch.device("meta"),
        lambda: torch.autograd.set_detect_anomaly(True),
    ],
}
GLOBALS = {  # how to set, a value, how to read
    "float64": (torch.set_default_dtype, torch.float64, torch.get_default_dtype),
    "bfloat16": (torch.set_default_dtype, torch.bfloat16, torch.get_default_dtype),
    "default-device": (torch.set_default_device, torch.device("meta"), torch.get_default_device),
    "matmul-medium": (
        torch.set_float32_matmul_precision,
        "medium",
        torch.get_float32_matmul_precision,
    ),
    "no-flash": (torch.backends.cuda.enable_flash_sdp, False, torch.backends.cuda.flash_sdp_enabled),
    "no-grad-for-good": (torch.set_grad_enabled, False, torch.is_grad_enabled),
    "deterministic": (torch.use_deterministic_algorithms, True, torch.are_deterministic_algorithms_enabled),
    "fp16-sums": (
        lambda value: setattr(torch.backends.cuda.matmul, "allow_fp16_accumulation", value),
        True,
        lambda: torch.backends.cuda.matmul.allow_fp16_accumulation,
    ),
    "no-mkldnn": (
        lambda value: setattr(torch.backends.mkldnn, "enabled", value),
        False,
        lambda: torch.backends.mkldnn.enabled,
    ),
}
TOGETHER = [  # each alone would take long
    ("float64", "matmul-medium", "no-flash", "no-grad-for-good", "fp16-sums"),
    ("bfloat16", "default-device", "deterministic", "no-mkldnn"),
]


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """Every cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    forget_plans()
    yield
    forget_plans()


def forget_plans():
    choice._phases.cache_clear()
    choice._measured_of_video.cache_clear()


@pytest.fixture(scope="module")
def expected(clip, small_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("expected")
    return latents(transfer(quick_settings(clip, small_folder, output=str(folder / "run"))))


@pytest.mark.parametrize("modes", MODES.values(), ids=MODES)
def test_the_callers_modes_do_not_matter(settings, expected, fresh, modes):
    with ExitStack() as entered:
        for mode in modes:
            entered.enter_context(mode())
        assert torch.equal(latents(transfer(settings)), expected)
    assert torch.equal(latents(transfer(settings)), expected)  # caches filled there are sound


@pytest.mark.parametrize("names", TOGETHER, ids="-".join)
def test_the_callers_settings_do_not_matter_and_are_restored(settings, expected, fresh, names):
    changed = [GLOBALS[name] for name in names]
    before = [read() for _, _, read in changed]
    wanted = [value for _, value, _ in changed]
    for write, value, _ in changed:
        write(value)
    try:
        assert torch.equal(latents(transfer(settings)), expected)
        assert [read() for _, _, read in changed] == wanted
        with pytest.raises(DitflowError):
            transfer(replace(settings, frames=300))
        assert [read() for _, _, read in changed] == wanted
        flow(replace(settings, output=f"{settings.output}-flow", injection=False))
        assert [read() for _, _, read in changed] == wanted
    finally:
        for (write, _, _), value in zip(changed, before, strict=True):
            write(None if write is torch.set_default_device else value)


def test_every_setting_is_tried():
    assert sorted(sum(TOGETHER, ())) == sorted(GLOBALS)


def state():
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        os.environ.get(WORKSPACE),
        torch.get_num_threads(),
        [read() for read, _, _ in module._DEFAULTS],
    )


@pytest.mark.parametrize("workspace", [None, ":0:0", ":16:8"])
@pytest.mark.parametrize("fails", [False, True])
def test_deterministic_is_restored(settings, monkeypatch, workspace, fails):
    monkeypatch.delenv(WORKSPACE, raising=False)
    if workspace:
        monkeypatch.setenv(WORKSPACE, workspace)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        before, inside, real = state(), [], Job.encode

        def encode(job):
            inside.append(state())
            return fail() if fails else real(job)

        monkeypatch.setattr(Job, "encode", encode)
        try:
            transfer(replace(settings, deterministic=True))
        except RuntimeError as error:
            assert fails and str(error) == "planted"
        assert state() == before
        assert inside[0][:2] == (True, False) and inside[0][2] in module.WORKSPACES
    finally:
        torch.use_deterministic_algorithms(False)


def fail():
    raise RuntimeError("planted")


def test_evaluation_in_inference_mode(settings, fresh):
    run = FinishedRun.open(transfer(settings).folder)
    wanted = read_own_flow(run)[2].distance
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode():
            assert read_own_flow(run)[2].distance == wanted
    finally:
        torch.set_default_dtype(torch.float32)


def test_every_default_is_torchs_own():
    """In a fresh process; here another test may have changed some."""
    code = (
        "from ditflow.memory.torch_state import _DEFAULTS\n"
        "wrong = [i for i, (read, _, wanted) in enumerate(_DEFAULTS) if read() != wanted]\n"
        "assert not wrong, wrong\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_four_transfers_in_threads(settings, expected, fresh):
    """They take turns, as torch's settings and fake tensors are one for the whole process."""
    found, errors = {}, []

    def work(index):
        try:
            one = replace(
                settings, output=f"{settings.output}-{index}", dtype=("float32", "bfloat16")[index % 2]
            )
            found[index] = latents(transfer(one))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert torch.equal(found[0], expected) and torch.equal(found[2], expected)
    assert torch.equal(found[1], found[3]) and not torch.equal(found[1], found[0])


def test_planning_waits_for_a_job_of_another_thread(settings):
    done = threading.Event()

    def plan():
        choose_plan(replace(settings, frames=11), CPU)
        done.set()

    with torch_state():
        thread = threading.Thread(target=plan)
        thread.start()
        assert not done.wait(1)
    assert done.wait(60)


def test_a_job_in_a_job_keeps_the_outer_settings(settings):
    with torch_state(deterministic=True, threads=2):
        with torch_state():
            assert torch.are_deterministic_algorithms_enabled() and torch.get_num_threads() == 2
        with torch_state(deterministic=False):
            assert not torch.are_deterministic_algorithms_enabled()
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled() and torch.get_num_threads() == 1


def sums_in_fp16():
    return torch.backends.cuda.matmul.allow_fp16_accumulation


def test_sums_in_fp16_are_set_and_restored():
    with torch_state(fp16_sums=True):
        with torch_state():
            assert sums_in_fp16()
        with torch_state(fp16_sums=False):
            assert not sums_in_fp16()
        assert sums_in_fp16()
    assert not sums_in_fp16()


def test_a_run_adds_in_fp16_if_it_is_asked_to(settings, monkeypatch, fresh):
    """All but the prompts, which are cached for other runs."""
    seen = {}

    def recorded(owner, name):
        real = getattr(owner, name)

        def call(*given, **options):
            seen[name] = sums_in_fp16()
            return real(*given, **options)

        monkeypatch.setattr(owner, name, call)

    wanted = replace(settings, compute="fp16-sums", dtype="float16")
    with pytest.raises(DitflowError, match="--compute fp16-sums needs a CUDA GPU"):
        transfer(wanted)
    monkeypatch.setattr(checks, "check_compute", lambda *given: None)
    recorded(T5TextEncoder, "encode")
    recorded(CogVideoXTransformer, "attend")
    transfer(wanted)
    assert seen == {"encode": False, "attend": True} and not sums_in_fp16()
    transfer(replace(settings, output=f"{settings.output}-exact"))
    assert seen["attend"] is False


def in_fork(work):
    """The exit code of a fork: 0 done, 1 refused, 2 another error; -1 if it hangs."""
    pid = os.fork()
    if not pid:
        code = 2
        try:
            work()
            code = 0
        except DitflowError as error:
            code = 1 if "fork" in str(error) else 2
        finally:
            os._exit(code)
    for _ in range(600):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.1)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return -1


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA cannot be used in a fork")
@pytest.mark.parametrize("threads, code", [(1, 0), (2, 1)])
def test_a_fork_after_a_transfer(settings, threads, code):
    transfer(settings)
    torch.set_num_threads(threads)
    try:
        assert in_fork(lambda: transfer(settings)) == code
    finally:
        torch.set_num_threads(1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA cannot be used in a fork")
def test_a_fork_while_another_thread_computes(settings):
    entered, leave = threading.Event(), threading.Event()

    def compute():
        with torch_state():
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=compute)
    thread.start()
    entered.wait(60)
    try:
        assert in_fork(lambda: transfer(settings)) == 0
    finally:
        leave.set()
        thread.join()
