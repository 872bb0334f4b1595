"""PyAV 19: `open` lost an argument, rates have a type of their own, and metadata is read differently."""

import importlib.util
import sys
from contextlib import nullcontext
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest

from ditflow.video import Clip, read_clip, read_metadata, timeline, write_clip


@pytest.fixture
def path(tmp_path):
    write_clip(Clip(np.zeros((2, 32, 32, 3), np.uint8), Fraction(8)), tmp_path / "a.mp4", metadata="hello")
    return tmp_path / "a.mp4"


def test_metadata_that_is_not_utf8_does_not_hide_the_video(path):
    path.write_bytes(path.read_bytes().replace(b"hello", b"h\xe9\xff\xfeo"))
    assert read_metadata(path) == "h" + 3 * "\N{REPLACEMENT CHARACTER}" + "o"
    assert len(read_clip(path, frames=2, size=None).frames) == 2


def test_surrogates_of_a_later_pyav_are_replaced(path, monkeypatch):
    escaped = b"h\xe9\xff\xfeo".decode("utf-8", "surrogateescape")
    opened = SimpleNamespace(metadata={"comment": escaped})
    monkeypatch.setattr("ditflow.video.writing.open_video", lambda path: nullcontext((opened, None)))
    assert read_metadata(path) == "h" + 3 * "\N{REPLACEMENT CHARACTER}" + "o"


@pytest.mark.parametrize("version, passes", [("17.0.0", True), ("18.1.0", True), ("19.0.2", False)])
def test_only_a_pyav_before_19_is_given_the_argument(path, monkeypatch, version, passes):
    given, real = [], av.open
    monkeypatch.setattr(av, "__version__", version)
    monkeypatch.setattr(
        av, "open", lambda file, **options: given.append(options) or real(file, options=options["options"])
    )
    spec = importlib.util.spec_from_file_location("fresh_timeline", timeline.__file__)
    fresh = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, fresh)  # for its dataclass
    spec.loader.exec_module(fresh)
    with fresh.open_video(path) as (_, stream):
        assert stream.type == "video"
    assert ("metadata_errors" in given[0]) == passes


def test_a_rate_of_another_type_becomes_a_fraction():
    rate = SimpleNamespace(numerator=30000, denominator=1001)
    found = timeline._declared_rate(SimpleNamespace(average_rate=rate, guessed_rate=None))
    assert found == Fraction(30000, 1001) and isinstance(found, Fraction)
