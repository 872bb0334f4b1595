"""Random settings files, run records and safetensors files: reading gives a value or a DitflowError."""

import json
import struct
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from ditflow.errors import DitflowError, SettingsError
from ditflow.evaluation.finished import FinishedRun
from ditflow.run_folder.embeddings import read_embeddings
from ditflow.run_folder.run import read_tensors
from ditflow.settings import Settings, read_settings

settings.register_profile("same", max_examples=60, derandomize=True, deadline=None, database=None)
settings.load_profile("same")

FIELDS = [item.name for item in fields(Settings)]
NAMES = st.sampled_from(FIELDS)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
WORDS = st.sampled_from(
    ["64x48", "1e400", "0x_", "1:1:1.5", "2026-13-45", "=", "<<", "!!int", "&a", "*a", "~"]
)
VALUES = st.recursive(
    PLAIN | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
DTYPES = st.sampled_from(["F32", "BF16", "F8_E8M0", "F4", "F6_E2M3", "I64", "BOOL", "C64", "X9", ""])
SIZES = st.lists(st.integers(0, 3) | st.sampled_from([-1, 1 << 40, 1 << 63]), max_size=5)
ENTRIES = st.fixed_dictionaries(
    {"dtype": DTYPES, "shape": SIZES, "data_offsets": st.lists(st.integers(0, 64))}
)
HEADERS = st.dictionaries(
    st.sampled_from(["step_000", "latents", "reference", "__metadata__"]), ENTRIES | VALUES, max_size=3
)
FACTS = {"model": '"small"', "frames": "9"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def settings_or_refusal(path: Path) -> Settings | None:
    try:
        return read_settings(path)
    except SettingsError as error:
        assert str(error)
        return None


@pytest.mark.fault("settings files of random values, random text and random bytes")
@given(mapping=st.dictionaries(NAMES, VALUES, max_size=4), text=st.text(), noise=st.binary(max_size=100))
def test_settings(folder, mapping, text, noise):
    path = folder / "settings.yaml"
    lines = "".join(f"{name}: {value}\n" for name, value in mapping.items())
    for content in (yaml.safe_dump(mapping).encode(), lines.encode(errors="replace"), text.encode(), noise):
        path.write_bytes(content)
        if found := settings_or_refusal(path):
            path.write_text(found.to_yaml(), encoding="utf-8")
            assert read_settings(path) == found


@pytest.mark.fault("a settings file with random values of each setting")
@pytest.mark.parametrize("name", FIELDS)
@settings(max_examples=10)
@given(value=VALUES, word=st.text(max_size=20) | WORDS)
def test_each_setting(folder, name, value, word):
    path = folder / "settings.yaml"
    for content in (yaml.safe_dump({name: value}), f"{name}: {word}\n"):
        path.write_bytes(content.encode(errors="replace"))
        if found := settings_or_refusal(path):
            path.write_text(found.to_yaml(), encoding="utf-8")
            assert read_settings(path) == found


def safetensors(header: object, data: bytes) -> bytes:
    packed = json.dumps(header).encode()
    return struct.pack("<Q", len(packed)) + packed + data


@pytest.mark.fault("safetensors files with random headers, random metadata and random bytes")
@given(
    header=HEADERS,
    metadata=st.dictionaries(st.sampled_from(["model", "frames", "x"]), st.text(max_size=9), max_size=3),
    noise=st.binary(max_size=100),
    cut=st.integers(0, 200),
)
def test_tensors(folder, header, metadata, noise, cut):
    path = folder / "latents.safetensors"
    whole = save({"step_000": torch.ones(2), "latents": torch.ones(2, 2)}, metadata)
    for content in (safetensors(header, noise), whole, whole[:cut], noise):
        path.write_bytes(content)
        for read in (
            lambda: read_tensors(path, "none"),
            lambda: read_embeddings(path, FACTS, 1),
            FinishedRun(folder, Settings(model="small"), {}).latents,
        ):
            try:
                assert len(read()) > 0
            except DitflowError as error:
                assert path.name in str(error)


@pytest.mark.fault("run records of random values and random bytes")
@given(
    record=st.fixed_dictionaries(
        {"versions": VALUES, "device": VALUES, "phases": VALUES}, optional={"losses": VALUES}
    ),
    noise=st.binary(max_size=50),
)
def test_records(folder, record, noise):
    (folder / "settings.yaml").write_text("model: small\n")
    (folder / "result.mp4").touch()
    for content in (json.dumps(record).encode(), noise):
        (folder / "run.json").write_bytes(content)
        try:
            assert isinstance(FinishedRun.open(folder).record["device"], str)
        except DitflowError as error:
            assert "run.json is damaged" in str(error)
