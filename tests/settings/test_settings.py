"""Settings: shipped defaults, precedence, and a one-line error for every bad value."""

from dataclasses import fields, replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from ditflow.errors import DitflowError, SettingsError
from ditflow.files import shipped
from ditflow.settings import Settings, read_settings
from ditflow.settings.speed import SPEEDS, exact, speed_settings


def test_published_defaults():
    settings = Settings()
    assert (settings.model, settings.scheduler, settings.dtype) == ("5b", "dpm", "bfloat16")
    assert (settings.steps, settings.guided, settings.optimisation_steps) == (50, 0.2, 5)
    assert (settings.learning_rate, settings.temperature) == ((0.002, 0.001), 2)
    assert (settings.guidance_blocks, settings.injection_blocks) == ((20,), (0,))
    assert (settings.guidance_scale, settings.moft_channels) == ((7,), 0.04)
    assert settings.guided_steps == 10
    assert settings.negative_prompt.startswith("bad quality")
    assert Settings(model="2b").guidance_blocks == (15,)
    assert Settings(model="2b").dtype == "float16"


def test_a_guidance_scale_for_all_transformers_or_one_for_each():
    published = Settings(model="wan-a14b")
    assert published.guidance_scale == (4, 3)
    assert [published.scale_of(expert) for expert in (0, 1)] == [4, 3]
    same = Settings(model="wan-a14b", guidance_scale=5)
    assert [same.scale_of(expert) for expert in (0, 1)] == [5, 5]
    assert Settings(**yaml.safe_load(published.to_yaml())) == published
    assert Settings(model="wan-a14b", guidance_scale="5,2") == replace(published, guidance_scale=(5, 2))


def test_weights_of_all_transformers_or_a_file_for_each():
    assert [Settings(model="wan-a14b", weights="int8").weights_of(expert) for expert in (0, 1)] == [
        "int8"
    ] * 2
    files = Settings(model="wan-a14b", weights=["low=b.gguf", "high=a=1.gguf"])
    assert [files.weights_of(expert) for expert in (0, 1)] == ["a=1.gguf", "b.gguf"]
    assert Settings(**yaml.safe_load(files.to_yaml())) == files
    assert Settings(weights="a.gguf").weights_of(0) == "a.gguf"


def test_configs_hold_a_default_for_exactly_the_fields_of_settings():
    names = [*shipped("defaults.yaml"), *speed_settings("exact")]
    assert sorted(names) == sorted(item.name for item in fields(Settings))
    assert SPEEDS == ("exact", "fast", "faster")
    for speed in SPEEDS:
        assert speed_settings(speed).keys() == speed_settings("exact").keys()
    for model in ("5b", "2b", "small"):
        assert set(shipped(f"models/{model}.yaml")["settings"]) <= set(shipped("defaults.yaml"))


def test_yaml_round_trip():
    settings = Settings(
        model="small", prompt='quote " and : colon', size="32x64", lora=["a.safetensors:0.5", "b,c/d"]
    )
    assert Settings(**yaml.safe_load(settings.to_yaml())) == settings
    assert "size: 32x64" in settings.to_yaml()


def test_given_values_override_the_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("model: small\nsteps: 7\nseed: 3\n")
    settings = read_settings(path, seed=4, steps=None)
    assert (settings.model, settings.steps, settings.seed) == ("small", 7, 4)
    assert settings.size == (96, 64)  # the model's default


def test_a_speed_sets_what_is_not_given():
    fast = Settings(model="small", speed="fast", negative="every")
    assert (fast.speed, fast.negative, fast.attention_forward) == ("fast", "every", "auto")
    assert exact(fast) == Settings(model="small")
    assert exact(Settings(model="small", gradient_reuse=2)) == Settings(model="small")


def test_a_speed_that_is_given_overrides_the_file_that_holds_every_setting(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text(Settings(model="small", steps=7, step_cache="0.1").to_yaml())
    assert read_settings(path).step_cache == "0.1"
    faster = read_settings(path, speed="faster", gradients=2)
    assert faster == Settings(model="small", steps=7, speed="faster", gradients=2)
    path.write_text("model: small\nspeed: fast\nnegative: every\n")
    assert read_settings(path) == Settings(model="small", speed="fast", negative="every")
    assert read_settings(path, speed="fast") == Settings(model="small", speed="fast")


def test_model_family_of_a_local_folder(tmp_path):
    (tmp_path / "transformer").mkdir()
    (tmp_path / "model_index.json").write_text('{"_class_name": "CogVideoXPipeline"}')
    config = tmp_path / "transformer" / "config.json"
    others = '"num_layers": 30, "max_text_seq_length": 226, "text_embed_dim": 4096'
    config.write_text(f'{{{others}, "use_rotary_positional_embeddings": false}}')
    assert Settings(model=str(tmp_path)).guidance_blocks == (15,)
    config.write_text(f'{{{others}, "use_rotary_positional_embeddings": true}}')
    assert Settings(model=str(tmp_path)).guidance_blocks == (20,)
    for damaged in ("{", "[]", "3"):
        config.write_text(damaged)
        with pytest.raises(SettingsError, match="is damaged.* give a complete pipeline folder"):
            Settings(model=str(tmp_path))
    config.write_text("{}")
    with pytest.raises(
        DitflowError, match="config.json: it lacks num_layers, expected a whole number from 1 to 100"
    ):
        Settings(model=str(tmp_path))


@pytest.mark.parametrize(
    "given, made, guided",
    [("noise", 50, 10), ("clip:1", 50, 10), ("clip:0.6", 30, 6), ("clip:0.58", 28, 6), ("clip:0.02", 1, 1)],
)
def test_a_run_from_the_clip_makes_the_last_steps(given, made, guided):
    """As many as in diffusers' pipelines, which take the floor; the guided share is one of these."""
    settings = Settings(initial_latents=given)
    assert settings.starts_from_clip == (given != "noise")
    assert (settings.steps_made, settings.skipped_steps) == (made, 50 - made)
    assert settings.guided_steps == guided
    assert Settings(**yaml.safe_load(settings.to_yaml())) == settings


def test_a_guided_share_above_zero_guides_at_least_one_step():
    assert Settings(steps=2, guided=0.05).guided_steps == 1
    assert Settings(steps=2, guided=0).guided_steps == 0


@pytest.mark.parametrize(
    "given, message",
    [
        ({"steps": "many"}, "steps: 'many' given, a whole number accepted"),
        ({"steps": 2.5}, "a whole number accepted"),
        ({"steps": True}, "a whole number accepted"),
        ({"steps": 0}, "at least 1 accepted"),
        ({"frames": 8}, "at least 9 accepted"),
        ({"guided": 1.5}, "at most 1 accepted"),
        ({"guided": "nan"}, "a number accepted"),
        ({"loss": "mse"}, "accepted: flow, moft, smm, smm-release, x0"),
        ({"loss": "x0", "optimise": "embedding"}, "embedding: use --optimise latent, or another --loss"),
        ({"x0_after": 0.5, "optimise": "embedding"}, "use --optimise latent, or leave out --x0-after"),
        ({"x0_after": 0.5, "loss": "x0"}, "x0_after: 0.5 given, but the loss is x0 from the first step"),
        ({"initial_latents": "clip"}, "initial_latents: 'clip' given; accepted: noise, or clip:STRENGTH"),
        ({"initial_latents": "clip:0"}, "with a strength above 0 and at most 1, such as clip:0.6"),
        ({"initial_latents": "clip:0.0"}, "initial_latents: 'clip:0.0' given; accepted"),
        ({"initial_latents": "clip:2"}, "initial_latents: 'clip:2' given; accepted"),
        ({"initial_latents": "clip:-0.5"}, "initial_latents: 'clip:-0.5' given; accepted"),
        ({"initial_latents": "clip:nan"}, "initial_latents: 'clip:nan' given; accepted"),
        ({"initial_latents": "clip:0.6 "}, "initial_latents: 'clip:0.6 ' given; accepted"),
        ({"initial_latents": "0.6"}, "initial_latents: '0.6' given; accepted"),
        ({"initial_latents": "clip:0.6", "steps": 1}, "makes none of the 1 steps; use a higher strength"),
        ({"reference_noise": "all"}, "reference_noise: 'all' given, accepted: clean, step"),
        ({"reference_noise": "step", "guidance": False}, "step given, but nothing is optimised towards"),
        ({"reference_noise": "step", "guided": 0}, "step given, but nothing is optimised towards"),
        ({"reference_noise": "step", "saved_embedding": "x"}, "step given, but nothing is optimised towards"),
        ({"reference_noise": "step", "loss": "x0"}, "loss x0 always reads the clip at the noise level"),
        ({"size": "100x100"}, "multiples of 16 accepted; nearest: 96x96"),
        ({"size": "x"}, "WIDTHxHEIGHT accepted"),
        ({"guidance_blocks": [4, 4]}, "[4, 4] given; name each block only once"),
        ({"size": "wide"}, "WIDTHxHEIGHT accepted"),
        ({"size": [720]}, "WIDTHxHEIGHT accepted"),
        ({"learning_rate": [0.1]}, "2 numbers accepted"),
        ({"learning_rate": "0.1 x"}, "2 numbers accepted"),
        ({"guidance_scale": []}, "guidance_scale: [] given, one number accepted"),
        ({"guidance_scale": [4, 3]}, "guidance_scale: [4.0, 3.0] given, one number accepted"),
        ({"guidance_scale": "4 x"}, "a list of numbers accepted"),
        (
            {"guidance_scale": "4, 3, 2", "model": "wan-a14b"},
            "guidance_scale: [4.0, 3.0, 2.0] given, one number accepted, or 2: one for each of the model's",
        ),
        ({"guidance_blocks": "one"}, "a list of whole numbers accepted"),
        ({"guidance_blocks": [-1]}, "at least 0 accepted"),
        ({"injection": "perhaps"}, "true or false accepted"),
        ({"prompt": ["a", "b"]}, "a text accepted"),
        ({"guidance_blocks": [3, 4], "injection_blocks": [0, 4]}, "block 4 is both guided and injected"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else None,
)
def test_bad_values(given, message):
    with pytest.raises(SettingsError) as error:
        Settings(**given)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_embedding_is_refused_only_where_x0_would_optimise_it():
    assert not Settings(loss="x0", optimise="embedding", guidance=False).optimises
    assert Settings(loss="x0").optimises and not Settings(loss="x0").needs_gradient
    assert Settings().needs_gradient


@pytest.mark.parametrize(
    "share, first", [(0.001, 1), (0.1, 1), (0.34, 3), (0.5, 5), (0.9, 9), (0.96, 10), (1, 10)]
)
def test_the_loss_of_each_step(share, first):
    settings = Settings(x0_after=share, loss="smm")
    assert (settings.gradient_steps, settings.estimate_steps) == (first, 10 - first)
    losses = [settings.loss_in(step) for step in range(settings.steps)]
    assert losses == ["smm"] * first + ["x0"] * (10 - first) + [None] * 40
    assert settings.needs_gradient


@pytest.mark.parametrize(
    "change", [{"guidance": False}, {"guided": 0}, {"saved_embedding": "a file"}], ids=str
)
def test_without_optimisation_no_step_has_a_loss(change):
    settings = Settings(x0_after=0.5, **change)
    assert (settings.gradient_steps, settings.estimate_steps, settings.loss_in(0)) == (0, 0, None)
    assert Settings(loss="x0").loss_in(0) == "x0" and Settings(loss="x0").estimate_steps == 10


def test_a_block_may_be_both_guided_and_injected_when_one_is_off():
    assert Settings(guidance_blocks=[0], loss="x0").guidance  # this loss reads no block
    assert not Settings(guidance_blocks=[0], guidance=False).guidance
    assert not replace(Settings(), injection=False, guidance_blocks=(0,)).injection


@pytest.mark.parametrize(
    "text, message",
    [
        ("stepz: 4", "unknown setting 'stepz': did you mean 'steps'?"),
        ("xyzzy: red", "--print-config"),
        ("- a\n- b", "expected lines of `name: value`"),
        ("steps: [", "is not YAML"),
        ("3: 4", "expected lines"),
    ],
)
def test_bad_files(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError) as error:
        read_settings(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_file(tmp_path):
    with pytest.raises(SettingsError, match="No such file"):
        read_settings(tmp_path / "absent.yaml")


def test_paths_are_texts(tmp_path):
    settings = Settings(
        model="small", video=tmp_path / "clip.mp4", output=tmp_path, lora=[tmp_path / "lora.safetensors"]
    )
    assert settings.video == str(tmp_path / "clip.mp4") and settings.output == str(tmp_path)
    assert settings.lora == (str(tmp_path / "lora.safetensors"),)
    assert replace(settings, lora=tmp_path / "one").lora == (str(tmp_path / "one"),)
    assert Settings(model=Path("small")) == Settings(model="small")
    assert Settings(**yaml.safe_load(settings.to_yaml())) == settings


@pytest.mark.parametrize(
    "number",
    [9.5, Decimal("9.5"), Fraction(19, 2), np.float32(9.5), torch.tensor(9.5), "9.5", True, float("inf")],
)
def test_numbers_that_are_not_whole(number):
    with pytest.raises(SettingsError, match="frames: .* given, a whole number accepted"):
        Settings(model="small", frames=number)


@pytest.mark.parametrize("number", [9, 9.0, Decimal(9), Fraction(9), np.int32(9), torch.tensor(9), "9"])
def test_whole_numbers_of_any_type(number):
    assert Settings(model="small", frames=number).frames == 9


@pytest.mark.parametrize(
    "size",
    [(96.7, 64), (-96, 64), {96, 64}, "-96x64", (np.float32(96.5), 64), (96, 64.5), (float("nan"), 64)]
    + [(True, 64), (96,), (96, 64, 3), 96, (None, 64)],
)
def test_sizes_that_are_not_two_whole_numbers(size):
    with pytest.raises(SettingsError, match="size: .* given, WIDTHxHEIGHT accepted"):
        Settings(model="small", size=size)


@pytest.mark.parametrize("size", [(96.0, 64), ("96", "64"), [96, 64], "96x64"], ids=str)
def test_sizes(size):
    assert Settings(model="small", size=size).size == (96, 64)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"gradients": 6}, "at most 5 accepted, the number of optimisation steps"),
        ({"gradients": 2, "gradient_reuse": 2}, "give only one of them"),
        ({"loss": "x0", "gradient_reuse": 2}, "no backward pass to save"),
    ],
)
def test_gradients_that_contradict_other_settings(given, said):
    with pytest.raises(SettingsError, match=said):
        Settings(**given)
