"""Which modules of bench know the classes of a model family."""

import ast

import pytest
from repository import ROOT

KNOW = {"subjects.py", "rivals.py"}  # they build models, and write diffusers' way beside ours


def family_imports(source):
    """The imports of a file that name a family's module or class."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
            found += [name for name in names if "cogvideox" in name.lower()]
    return found


def test_only_the_subjects_and_the_rivals_know_a_family():
    found = {
        path.relative_to(ROOT / "bench").as_posix(): family_imports(path.read_text(encoding="utf-8"))
        for path in (ROOT / "bench").rglob("*.py")
    }
    assert found["subjects.py"], "the check finds what is there"
    assert {name for name, imports in found.items() if imports} <= KNOW, found


@pytest.mark.parametrize(
    "source",
    [
        "import ditflow.models.cogvideox.vae",
        "from ditflow.models.cogvideox import vae",
        "from ditflow.models import cogvideox",
        "def late():\n    from diffusers import CogVideoXTransformer3DModel as Model",
        "from diffusers import AutoencoderKLCogVideoX",
    ],
)
def test_a_planted_import_is_found(source):
    assert family_imports(source)


def test_other_imports_are_not():
    assert not family_imports("import torch\nfrom ditflow.models.families import family_of")
