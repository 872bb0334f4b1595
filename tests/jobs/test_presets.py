"""Whole runs: every preset gives the same latents, and out of memory leads to a smaller preset."""

import logging
import re
from dataclasses import replace

import pytest
import torch
from tiny_pipelines import latents
from torch._guards import detect_fake_mode

from ditflow import transfer
from ditflow.cli.main import main
from ditflow.errors import DitflowError
from ditflow.jobs import checks
from ditflow.jobs import job as jobs
from ditflow.memory.blockwise import BlockwiseRunner
from ditflow.memory.presets import PRESETS
from ditflow.memory.streamed import Streamed
from ditflow.models import engine
from ditflow.models.attention import KERNELS
from ditflow.models.cogvideox import text
from ditflow.models.cogvideox.vae import CogVideoXAutoencoder
from ditflow.models.engine import check_engine
from ditflow.planning import choice, plan
from ditflow.settings import read_settings

DEPTH = 6  # blocks of the small model


@pytest.fixture
def fewest_resident(monkeypatch):
    """Keeps as few blocks resident as a preset allows, as on a card that is just large enough."""
    monkeypatch.setattr(
        plan,
        "_resident_blocks",
        lambda phases, preset, free, sizes: 3 if preset.checkpoint == "none" else 0,
    )


@pytest.fixture(scope="module")
def expected():
    """Holds the latents of a plain run, once a test has made it."""
    return {}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_gives_the_same_latents(settings, fewest_resident, expected, name, monkeypatch):
    """A guided step changes latents by 0.02 to 0.05: anything that a preset loses would show."""
    walked, walk = [], Streamed.walk

    def watched(self, order):
        walked.append(len(self.blocks))
        return walk(self, order)

    monkeypatch.setattr(Streamed, "walk", watched)
    run = transfer(replace(settings, memory=name))
    if "plain" not in expected:
        monkeypatch.undo()
        expected["plain"] = latents(transfer(settings))
    torch.testing.assert_close(latents(run), expected["plain"], rtol=1e-5, atol=1e-5)
    assert read_settings(run.folder / "settings.yaml").preset == name
    assert DEPTH in walked, "the transformer was not streamed"


def out_of_memory(times, work):
    """`work`, which first runs out of memory this many times."""
    left = [times]

    def fails(*given, **named):
        if detect_fake_mode(given) is not None:
            return work(*given, **named)  # called by a plan
        if left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("planted")
        return work(*given, **named)

    return fails


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(
    "phase",
    [
        "text",
        "denoise",
        pytest.param("decode", marks=pytest.mark.fault("out of memory while decoding: smaller tiles")),
    ],
)
def test_falls_back_to_the_next_smaller_preset(
    settings, fewest_resident, phase, times, monkeypatch, caplog, tmp_path
):  # fmt: skip
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # a small model with nothing resident: no preset needs much less
    monkeypatch.setattr(choice, "RETRY_SHARE", 2.0)
    where, name = {
        "text": (text.T5TextEncoder, "encode"),
        "denoise": (BlockwiseRunner, "forward"),
        "decode": (CogVideoXAutoencoder, "decode"),
    }[phase]
    monkeypatch.setattr(where, name, out_of_memory(times, getattr(where, name)))
    with caplog.at_level(logging.WARNING):
        run = transfer(replace(settings, memory="16gb"))
    used = ["12gb", "8gb"][times - 1]
    lines = [record.message for record in caplog.records if "out of memory" in record.message]
    assert lines == [
        f"out of memory in {phase}: continuing with gradient checkpointing of every block and 0 of 6 blocks "
        "resident"
        for _ in range(times)
    ]
    found = read_settings(run.folder / "settings.yaml")
    assert (found.memory, found.preset) == ("16gb", used)
    assert found.decode_tile == {"12gb": "288x192", "8gb": "240x160"}[used]
    monkeypatch.undo()
    again = transfer(replace(settings, memory="16gb"))
    torch.testing.assert_close(latents(run), latents(again), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("change", [{"attention": "sage"}, {"engine": "tensorrt"}], ids=str)
def test_what_has_no_gradient_can_guide_by_x0(settings, change, monkeypatch):
    """Stand-ins for the packages: the kernel is torch's own, and the engine compiles nothing."""
    kernel = replace(KERNELS["sage"], attend=KERNELS["sdpa"].attend, package=None, architecture=None)
    monkeypatch.setitem(KERNELS, "sage", kernel)
    monkeypatch.setattr(jobs, "denoise_with_tensorrt", lambda transformer: None)
    monkeypatch.setattr(jobs, "decode_with_tensorrt", lambda autoencoder: None)
    monkeypatch.setattr(engine, "find_spec", lambda name: True)
    monkeypatch.setattr(checks, "check_engine", lambda *given: check_engine(*given[:2], torch.device("cuda")))
    plain = replace(settings, loss="x0")
    assert torch.equal(latents(transfer(replace(plain, **change))), latents(transfer(plain)))


def test_no_preset_is_small_enough(settings, monkeypatch):
    monkeypatch.setattr(BlockwiseRunner, "gradient", out_of_memory(99, BlockwiseRunner.gradient))
    with pytest.raises(
        DitflowError, match="out of memory in denoise, and no memory preset needs less; use fewer"
    ):
        transfer(replace(settings, memory="6gb"))


@pytest.mark.parametrize(
    "words, says",
    [
        (["--attention", "sage"], "sage has no gradient, and this run optimises: use --attention sdpa"),
        (["--attention", "flash"], "--attention flash: .*available here: sdpa"),
        (["--engine", "tensorrt"], "--engine tensorrt has no gradient, and this run optimises"),
        (["--weights", "nf3"], "--weights nf3: unknown; accepted: full, fp8, int8, nf4 or a .gguf file"),
        (["--weights", "absent.gguf"], "no such file"),
        (["--memory", "little"], "memory: 'little' given; accepted: auto, gigabytes such as 8, or 4gb"),
        (["--memory", "0.42"], "not enough memory: .* needs .* MiB, .* more than the 0 MiB available"),
    ],
)
def test_bad_choices_are_refused_before_anything_is_loaded(
    settings, words, says, tmp_path, monkeypatch, capsys
):  # fmt: skip
    from diffusers import CogVideoXTransformer3DModel

    def loads(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(CogVideoXTransformer3DModel, "from_pretrained", loads)
    monkeypatch.setattr(text.T5EncoderModel, "from_pretrained", loads)
    config = tmp_path / "settings.yaml"
    config.write_text(settings.to_yaml())
    assert main(["transfer", "--config", str(config), *words]) in (1, 2)
    assert re.search(says, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()
