"""Imports between the rooms of `ditflow/` go down the list in docs/layout.md, never up."""

import ast
import re

import pytest
from repository import ROOT

ROOMS = (  # from the top
    "cli",
    "app",
    "batch",
    "comfyui",
    "pages",
    "evaluation",
    "jobs",
    "small",
    "planning",
    "sampling",
    "run_folder",
    "guidance",
    "motion",
    "settings",
    "memory",
    "models",
    "pictures",
    "optical_flow",
    "video",
    "profiling",
)
FOUNDATION = ("errors", "files", "limits", "progress", "schema")  # modules that every room may import
DATA = "configs"  # a folder of YAML files
PUBLIC = "ditflow"  # ditflow/__init__.py: what users import, so no room does


def imported(path, source):
    """The modules that a file imports, wherever in it, by their whole names."""
    package = path.parent.relative_to(ROOT).parts
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (origin, node.module)))
            yield from (f"{module}.{alias.name}" for alias in node.names)


def room_of(module):
    """The room of a module of this package by its name; None for other packages."""
    parts = module.split(".")
    if parts[0] in ("bench", "profiles", "tests"):
        return parts[0]
    if parts[0] != "ditflow":
        return None
    if parts[1:2] == [DATA]:
        return None
    return parts[1] if len(parts) > 1 and parts[1] in (*ROOMS, *FOUNDATION) else PUBLIC


def level(room):
    """How high a room is; the foundation is 0."""
    if room in FOUNDATION:
        return 0
    return len(ROOMS) - ROOMS.index(room) if room in ROOMS else len(ROOMS) + 1


def climbing(path, source):
    """The imports of a file that go up, each in a line."""
    here = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for module in imported(path, source):
        there = room_of(module)
        same = there == here or (here in FOUNDATION and there in FOUNDATION)
        if there and not same and level(there) >= level(here):
            yield f"{path.relative_to(ROOT)} ({here}) imports {module} ({there}), which is not below it"


def sources():
    return sorted(path for path in (ROOT / "ditflow").rglob("*.py") if path.parent != ROOT / "ditflow") + [
        ROOT / "ditflow" / f"{name}.py" for name in FOUNDATION
    ]


def test_no_import_climbs():
    found = [line for path in sources() for line in climbing(path, path.read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "import ditflow.jobs.transfer",
        "from ditflow.planning.plan import Plan",
        "from ditflow import transfer",
        "from ..sampling import loop",
        "def late():\n    from ditflow.cli import main",
        "if TYPE_CHECKING:\n    from ditflow.settings import Settings",
        "import bench.gpu",
    ],
)
def test_a_planted_import_is_named(source):
    path = ROOT / "ditflow" / "memory" / "planted.py"
    (line,) = climbing(path, source)
    assert line.startswith("ditflow/memory/planted.py (memory) imports ") and "not below it" in line


def test_imports_down_and_of_other_packages_are_fine():
    source = "import torch\nfrom ditflow import video\nfrom ditflow.memory import ring\nimport ditflow.errors"
    assert not list(climbing(ROOT / "ditflow" / "memory" / "planted.py", source))


def test_every_file_is_in_a_room():
    loose = {path.stem for path in (ROOT / "ditflow").glob("*.py")}
    assert loose == {*FOUNDATION, "__init__", "__main__"}
    folders = {path.parent.relative_to(ROOT / "ditflow").parts[0] for path in sources()[: -len(FOUNDATION)]}
    assert folders == set(ROOMS)


def test_the_layout_page_has_the_same_order():
    """The rooms as docs/layout.md lists them, each row beginning with its name."""
    page = (ROOT / "docs" / "layout.md").read_text(encoding="utf-8")
    listed = [name for name in re.findall(r"^\| `(\w+)/` \|", page, re.MULTILINE) if name in ROOMS]
    assert tuple(listed) == ROOMS


def test_no_room_outside_models_names_a_family():
    """Only folders in `models/` know a family's classes; `small/` holds models of one family."""
    words = re.compile(
        r"CogVideoX(Transformer|Block|DDIM|DPM|Pipeline|Autoencoder)|AutoencoderKL|T5|cogvideox|UniPC|"
        r"Wan(Transformer|Block|Pipeline|Autoencoder)|models\.wan"
    )
    families = ROOT / "ditflow" / "models"
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in sources()
        if not any(path.is_relative_to(families / name) for name in ("cogvideox", "wan", "t5"))
        and not path.is_relative_to(ROOT / "ditflow" / "small")
        and path != families / "families.py"
        for line in path.read_text(encoding="utf-8").splitlines()
        if words.search(line)
    ]
    assert not found, "\n".join(found)
