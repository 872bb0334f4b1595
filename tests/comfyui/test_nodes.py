"""The nodes on a stand-in for ComfyUI, with the small models."""

import gc
import inspect
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from stand_in import InterruptProcessingException, ModelPatcher

from ditflow import DitflowError, Session, SettingsError, evaluate

PROMPT = "a red circle on a blue background"
OTHER = "a green square on a white background"
SIZE = {"frames": 9, "width": 48, "height": 32, "steps": 3}
FEW = "guided: 0.67\noptimisation_steps: 1"
SETTINGS = {"frames": 9, "size": "48x32", "steps": 3, "guided": 0.67, "optimisation_steps": 1, "seed": 1}


@pytest.fixture(scope="module")
def model(run_node):
    return run_node("LoadModel")[0]


@pytest.fixture(scope="module")
def motion(run_node, images):
    return run_node("MotionFromClip", images=images, fps=10.0)[0]


@pytest.fixture(scope="module")
def transfer(run_node, model):
    def run(motion, prompt=PROMPT, model=model, settings=FEW, **given):
        return run_node(
            "Transfer", model=model, motion=motion, prompt=prompt, settings=settings, **SIZE | given
        )

    return run


@pytest.fixture(scope="module")
def made(transfer, motion, comfy):
    """The outputs of a transfer, and the progress that it has shown."""
    comfy.shown.clear()
    return transfer(motion), list(comfy.shown)


@pytest.fixture(scope="module")
def expected(images):
    """The result of the same transfer by the session."""
    session = Session("small")
    list(session.transfer((in_bytes(images), 10), PROMPT, **SETTINGS))
    return session.result


def in_bytes(images):
    return (images * 255).round().to(torch.uint8).numpy()


def test_each_schema_names_what_its_node_takes(nodes):
    for node in nodes.values():
        schema, taken = node.define_schema(), inspect.signature(node.execute).parameters
        assert [each.id for each in schema.inputs] == list(taken)
        for each in schema.inputs:
            assert each.optional == (taken[each.id].default is not inspect.Parameter.empty)
            assert each.socket or each.optional or each.accepts(each.default)


def test_a_transfer_is_that_of_the_session(made, expected):
    found, fps, latents, run = made[0]
    assert found.dtype == torch.float32 and found.min() >= 0 and found.max() <= 1
    np.testing.assert_array_equal(in_bytes(found), expected.frames)
    assert fps == 10
    assert torch.equal(latents["samples"], expected.latents.transpose(1, 2))
    assert (run.folder / "run.json").is_file()


def test_progress_counts_the_steps_and_shows_previews(made):
    shown = made[1]
    counts = [value for value, total, _ in shown if total == 3]
    assert counts == sorted(counts) and set(counts) == {0, 1, 2, 3}
    previews = [preview for *_, preview in shown if preview is not None]
    assert len(previews) == 3
    for kind, picture, _ in previews:
        assert kind == "JPEG" and isinstance(picture, Image.Image) and picture.size == (96, 64)


def test_an_interrupted_transfer_goes_on_when_it_is_queued_again(run_node, transfer, images, comfy, expected):
    (motion,) = run_node("MotionFromClip", images=images, fps=5.0)  # another run than that of `expected`

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
    np.testing.assert_array_equal(in_bytes(found), expected.frames)


def test_a_finished_transfer_is_taken_as_it_is(made, transfer, motion, comfy):
    comfy.shown.clear()
    found, _, latents, run = transfer(motion)
    first, _, before, same = made[0]
    assert not comfy.shown and same.folder == run.folder and found.shape == first.shape
    assert torch.equal(latents["samples"], before["samples"])


def test_other_inputs_make_another_run(run_node, images, motion, model):
    from ditflow.comfyui.runs import place_of

    def motions():
        yield motion
        yield run_node("MotionFromClip", images=images, fps=5.0)[0]
        yield run_node("MotionFromClip", images=1 - images, fps=10.0)[0]
        for invert in (False, True):
            yield run_node("MotionFromMask", motion=motion, mask=images, invert=invert)[0]
        yield run_node("MotionFromDrawing", motion=motion)[0]

    (other,) = run_node("LoadModel", model="small-sincos")
    places = [place_of(model, PROMPT, {"seed": 1}, each.digest) for each in motions()]
    places += [place_of(model, OTHER, {"seed": 1}, motion.digest)]
    places += [place_of(model, PROMPT, {"seed": 2}, motion.digest)]
    places += [place_of(other, PROMPT, {"seed": 1}, motion.digest)]
    assert len(set(places)) == len(places)
    assert place_of(model, PROMPT, {"seed": 1}, motion.digest) == places[0]


@pytest.mark.parametrize("kind", ["mask", "inverted image", "first frame"])
def test_a_mask_says_where_the_clip_counts(transfer, run_node, motion, images, kind):
    mask = torch.zeros(images.shape[:3])
    mask[:, :, 16:] = 1  # all but the first two of six columns of patches
    masks = {"mask": mask, "inverted image": (1 - mask)[..., None].expand_as(images), "first frame": mask[:1]}
    given = {"motion": motion, "mask": masks[kind], "invert": kind == "inverted image"}
    (masked,) = run_node("MotionFromMask", **given)
    counted = load_file(transfer(masked, steps=1)[3].folder / "motion.safetensors")["counted"]
    first = counted.reshape(len(counted), 4, 6)[0]
    assert first[:, 2:].all() and not first[:, :2].any()


def test_a_drawing_needs_no_clip_and_lies_over_one(transfer, run_node, motion):
    (drawn,) = run_node("MotionFromDrawing")
    found, _, _, run = transfer(drawn, steps=1)
    assert found.shape == (9, 32, 48, 3)
    assert set(load_file(run.folder / "motion.safetensors")) == {"drawn"}
    (both,) = run_node("MotionFromDrawing", motion=motion)
    run = transfer(both, steps=1)[3]
    assert "drawn" in load_file(run.folder / "motion.safetensors")
    assert "reference" in load_file(run.folder / "latents.safetensors")


def test_inject_uses_the_embedding_and_the_clip_in_memory(transfer, run_node, motion):
    (model,) = run_node("LoadModel", model="small-sincos")
    run = transfer(motion, model=model, optimise="embedding", steps=1)[3]
    found, *_ = run_node("Inject", model=model, run=run, prompt=OTHER, seed=5)
    session = Session("small-sincos")
    list(session.inject(run.folder, OTHER, clip=motion.clip, seed=5))
    np.testing.assert_array_equal(in_bytes(found), session.result.frames)


def test_inject_needs_an_embedding(made, run_node, model):
    with pytest.raises(DitflowError, match="embedding"):
        run_node("Inject", model=model, run=made[0][3], prompt=OTHER)


def test_evaluate_gives_the_scores_of_the_command(made, run_node):
    run = made[0][3]
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


def test_comfyui_takes_the_memory_back(transfer, motion, run_node, comfy):
    comfy.management.current_loaded_models.clear()
    (model,) = run_node("LoadModel", settings="seed: 3")
    transfer(motion, model=model, steps=1)
    with model.working():
        assert kept(model)  # ComfyUI moves the model in its list afterwards, which empties nothing
    assert [each.model for each in comfy.management.current_loaded_models] == [model.patcher]
    assert kept(model)
    comfy.management.unload_all_models()
    assert not kept(model) and not comfy.management.current_loaded_models


def test_a_model_that_comfyui_forgets_is_freed(comfy, run_node):
    comfy.management.current_loaded_models.clear()
    (model,) = run_node("LoadModel")
    with model.working():
        pass
    session = weakref.ref(model.session)
    del model
    gc.collect()
    assert session() is None
    assert [each.model for each in comfy.management.current_loaded_models] == [None]


def test_other_models_leave_the_gpu_before_a_run(comfy, run_node, monkeypatch):
    monkeypatch.setattr(comfy.management, "device", torch.device("cuda"))
    comfy.management.current_loaded_models.clear()
    other = ModelPatcher(torch.nn.Linear(1, 1), torch.device("cuda"), torch.device("cpu"))
    detached = []
    other.add_callback("on_detach", lambda patcher, unpatch_all: detached.append(unpatch_all))
    (first,), (second,) = run_node("LoadModel"), run_node("LoadModel", model="small-sincos")
    with first.working() as session:
        session.kept.get("part", 1, lambda: torch.nn.Linear(1, 1))
    comfy.management.load_models_gpu([other])
    with second.working():
        assert [each.model for each in comfy.management.current_loaded_models] == [first.patcher]
        assert detached == [True] and kept(first)
