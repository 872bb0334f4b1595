"""The nodes on a stand-in for ComfyUI, with the small models."""

import gc
import inspect
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from stand_in import InterruptProcessingException

from ditflow import Session, SettingsError, evaluate

PROMPT = "a red circle on a blue background"
OTHER = "a green square on a white background"
SIZE = {"frames": 9, "width": 48, "height": 32, "steps": 3}
FEW = "guided: 0.67\noptimisation_steps: 1"
SETTINGS = {"frames": 9, "size": "48x32", "steps": 3, "guided": 0.67, "optimisation_steps": 1, "seed": 1}


@pytest.fixture
def model(run_node):
    return run_node("LoadModel")[0]


@pytest.fixture
def motion(run_node, images):
    return run_node("MotionFromClip", images=images, fps=10.0)[0]


@pytest.fixture
def transfer(run_node, model):
    def run(motion, prompt=PROMPT, model=model, settings=FEW, **given):
        return run_node(
            "Transfer", model=model, motion=motion, prompt=prompt, settings=settings, **SIZE | given
        )

    return run


def session_result(images, **settings):
    frames = (images * 255).round().to(torch.uint8).numpy()
    session = Session("small")
    list(session.transfer((frames, 10), PROMPT, **SETTINGS | settings))
    return session.result


def test_each_schema_names_what_its_node_takes(nodes):
    for node in nodes.values():
        schema, taken = node.define_schema(), inspect.signature(node.execute).parameters
        assert [each.id for each in schema.inputs] == list(taken)
        for each in schema.inputs:
            assert each.optional == (taken[each.id].default is not inspect.Parameter.empty)
            assert each.socket or each.optional or each.accepts(each.default)


def test_a_transfer_is_that_of_the_session(transfer, motion, images):
    found, fps, latents, run = transfer(motion)
    expected = session_result(images)
    assert found.dtype == torch.float32 and found.min() >= 0 and found.max() <= 1
    np.testing.assert_array_equal((found * 255).round().to(torch.uint8).numpy(), expected.frames)
    assert fps == 10
    assert torch.equal(latents["samples"], expected.latents.transpose(1, 2))
    assert (run.folder / "run.json").is_file()


def test_progress_counts_the_steps_and_shows_previews(transfer, motion, comfy):
    transfer(motion)
    counts = [value for value, total, _ in comfy.shown if total == 3]
    assert counts == sorted(counts) and set(counts) == {0, 1, 2, 3}
    previews = [preview for *_, preview in comfy.shown if preview is not None]
    assert len(previews) == 3
    for kind, picture, _ in previews:
        assert kind == "JPEG" and isinstance(picture, Image.Image) and picture.size == (48, 32)


def test_an_interrupted_transfer_goes_on_when_it_is_queued_again(transfer, motion, images, comfy):
    def interrupt(value, total):
        comfy.management.interrupted |= value == 1

    comfy.on_progress = interrupt
    with pytest.raises(InterruptProcessingException):
        transfer(motion)
    assert not comfy.management.interrupted
    comfy.shown.clear()
    comfy.on_progress = lambda value, total: None
    found, *_ = transfer(motion)
    assert max((total for _, total, _ in comfy.shown), default=0) < 3  # steps that were left
    np.testing.assert_array_equal(
        (found * 255).round().to(torch.uint8).numpy(), session_result(images).frames
    )


def test_a_finished_transfer_is_taken_as_it_is(transfer, motion, comfy):
    first, _, latents, run = transfer(motion)
    comfy.shown.clear()
    second, _, again, same = transfer(motion)
    assert not comfy.shown and same.folder == run.folder
    assert torch.equal(latents["samples"], again["samples"])
    assert (first - second).abs().mean() < 0.02  # the second one is read from the video file


@pytest.mark.parametrize("change", [{"seed": 2}, {"prompt": OTHER}, {"settings": f"{FEW}\nflip: horizontal"}])
def test_other_inputs_make_another_run(transfer, motion, change):
    assert transfer(motion)[3].folder != transfer(motion, **change)[3].folder


@pytest.mark.parametrize("kind", ["mask", "image", "first frame"])
def test_a_mask_says_where_the_clip_counts(transfer, run_node, motion, images, kind):
    mask = torch.zeros(images.shape[:3])
    mask[:, :, 16:] = 1
    mask = {"mask": mask, "image": mask[..., None].expand_as(images), "first frame": mask[:1]}[kind]
    (masked,) = run_node("MotionFromMask", motion=motion, mask=mask)
    counted = load_file(transfer(masked)[3].folder / "motion.safetensors")["counted"]
    counted = counted.reshape(len(counted), 2, 3)
    assert counted[0, :, 1:].all() and not counted[0, :, 0].any()
    (inverted,) = run_node("MotionFromMask", motion=motion, mask=mask, invert=True)
    counted = load_file(transfer(inverted)[3].folder / "motion.safetensors")["counted"]
    assert not counted.reshape(len(counted), 2, 3)[0, :, 1:].any()


def test_a_drawing_needs_no_clip_and_lies_over_one(transfer, run_node, motion):
    (drawn,) = run_node("MotionFromDrawing")
    found, _, _, run = transfer(drawn)
    assert found.shape == (9, 32, 48, 3)
    assert set(load_file(run.folder / "motion.safetensors")) == {"drawn"}
    (both,) = run_node("MotionFromDrawing", motion=motion)
    run = transfer(both)[3]
    assert "drawn" in load_file(run.folder / "motion.safetensors")
    assert "reference" in load_file(run.folder / "latents.safetensors")


def test_inject_uses_the_embedding_and_the_clip_in_memory(transfer, run_node, motion):
    (model,) = run_node("LoadModel", model="small-sincos")
    run = transfer(motion, model=model, optimise="embedding")[3]
    found, *_ = run_node("Inject", model=model, run=run, prompt=OTHER, seed=5)
    session = Session("small-sincos")
    list(session.inject(run.folder, OTHER, clip=motion.clip, seed=5))
    np.testing.assert_array_equal((found * 255).round().to(torch.uint8).numpy(), session.result.frames)


def test_inject_needs_an_embedding(transfer, run_node, motion, model):
    run = transfer(motion)[3]
    with pytest.raises(Exception, match="embedding"):
        run_node("Inject", model=model, run=run, prompt=OTHER)


def test_evaluate_gives_the_scores_of_the_command(transfer, run_node, motion):
    run = transfer(motion)[3]
    fidelity, text = run_node("Evaluate", run=run)
    (expected,) = evaluate(run.folder)
    assert fidelity == expected["motion"]["score"]
    assert f"motion: {fidelity:.3f}" in text.splitlines()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"settings": "video: /etc/passwd"}, "settings: video is chosen by the nodes; leave it out"),
        ({"settings": "- 1"}, "settings: expected lines of `name: value`"),
        ({"settings": "step: 3"}, "unknown setting 'step': did you mean 'steps'?"),
        ({"width": 0}, "width 0, height 32: give both, or 0 for both"),
    ],
)
def test_wrong_inputs_are_refused(transfer, motion, inputs, message):
    with pytest.raises(SettingsError) as refused:
        transfer(motion, **inputs)
    assert str(refused.value) == message


def test_a_mask_needs_a_clip(run_node):
    (drawn,) = run_node("MotionFromDrawing")
    with pytest.raises(SettingsError, match="join it to a motion from a clip"):
        run_node("MotionFromMask", motion=drawn, mask=torch.ones(1, 8, 8))


def test_settings_of_the_model_win_over_its_widgets(run_node):
    (model,) = run_node("LoadModel", weights="full", settings="weights: int8\nseed: 7")
    assert model.session.common["weights"] == "int8" and model.session.common["seed"] == 7


def kept(model):
    return len(model.session.kept._parts)


def test_comfyui_takes_the_memory_back(transfer, motion, model, comfy):
    transfer(motion)
    transfer(motion, seed=2)  # ComfyUI moves the model in its list, which empties nothing
    assert [each.model for each in comfy.management.current_loaded_models] == [model.patcher]
    assert kept(model) == 3  # text encoder, transformer, autoencoder
    comfy.management.unload_all_models()
    assert not kept(model) and not comfy.management.current_loaded_models
    transfer(motion, seed=3)  # loads them anew
    assert kept(model) == 3


def test_a_model_that_comfyui_forgets_is_freed(comfy, run_node):
    (model,) = run_node("LoadModel")
    with model.working():
        pass
    session = weakref.ref(model.session)
    del model
    gc.collect()
    assert session() is None
    assert [each.model for each in comfy.management.current_loaded_models] == [None]


def test_other_models_leave_the_gpu_before_a_run(comfy, run_node):
    comfy.management.device = torch.device("cuda")
    (first,), (second,) = run_node("LoadModel"), run_node("LoadModel", model="small-sincos")
    with first.working(), second.working():
        pass
    first.session.kept.get("part", 1, lambda: torch.nn.Linear(1, 1))
    second.session.kept.get("part", 1, lambda: torch.nn.Linear(1, 1))
    with second.working():
        assert [each.model for each in comfy.management.current_loaded_models] == [second.patcher]
        assert kept(second) and not kept(first)
