"""The wind tunnel's modes."""

from dataclasses import fields

import pytest

from bench.tunnel.modes import FIXED, NAMED, changed, read_mode
from bench.tunnel.stages import STAGES
from ditflow.errors import SettingsError
from ditflow.settings import Settings, read_settings


@pytest.fixture(scope="module")
def settings():
    return read_settings(model="small", steps=50, guided=0.2, learning_rate=(0.006, 0.003))


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("no-op", {}),
        ("dtype=bfloat16", {"dtype": "bfloat16"}),
        (
            "optimisation_steps=2,learning_rate=0.015",
            {"optimisation_steps": 2, "learning_rate": (0.015, 0.015)},
        ),
        (
            "optimisation_steps=2,learning_rate=0.015,0.01",
            {"optimisation_steps": 2, "learning_rate": (0.015, 0.01)},
        ),
        ("guidance_blocks=3,4,rows=all", {"guidance_blocks": (3, 4), "rows": "all"}),
        ("gradients=2", {"gradients": 2}),
        ("gradients=1+weights=int8", {"gradients": 1, "weights": ("int8",)}),
        ("temperature=8+half-temperature", {"temperature": 4.0}),
        ("half-temperature", {"temperature": 8.0}),
    ],
)
def test_a_word_is_changes_to_settings(word, said, settings):
    assert changed(settings, read_mode(word)) == said


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("gradient-3", "accepted are no-op"),
        ("stepps=3", "'steps'"),
        ("dtype=float8", "bfloat16"),
        ("steps=3", "the same for all modes"),
        ("seed=3", "the same for all modes"),
    ],
)
def test_bad_words_are_explained(word, said, settings):
    with pytest.raises(SettingsError, match=said):
        read_mode(word).apply(settings)


def test_every_setting_can_be_a_mode_but_those_that_are_the_task():
    """A setting that comes later needs no change here."""
    names = {field.name for field in fields(Settings)}
    assert names > FIXED
    base = read_settings(model="small")
    assert read_mode("no-op").apply(base) == base
    for name in names - FIXED - {"lora"}:  # a list of files, here empty
        value = getattr(base, name)
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        assert read_mode(f"{name}={text}").apply(base) == base, name


@pytest.mark.parametrize("name", STAGES)
def test_modes_of_the_tables_are_modes(name):
    stage = STAGES[name]
    for variant in stage.variants:
        for word in stage.modes:
            after = read_mode(word).apply(stage.base(variant))
            assert after != stage.base(variant) or word == "no-op"
    assert NAMED.keys() >= {"backbone", "no-op"}
