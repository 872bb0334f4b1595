"""The folder that ComfyUI loads, and the command that writes it."""

import asyncio
import importlib.util
import json
import subprocess
import sys
import tomllib

import pytest
from repository import ROOT

from ditflow import __version__
from ditflow.comfyui.install import PACK

CORE = {  # the nodes of ComfyUI 0.3.64 in the examples: outputs, then inputs with a socket, by type
    "LoadVideo": (["VIDEO"], {}),
    "GetVideoComponents": (["IMAGE", "AUDIO", "FLOAT"], {"video": "VIDEO"}),
    "CreateVideo": (["VIDEO"], {"images": "IMAGE", "fps": "FLOAT"}),
    "SaveVideo": ([], {"video": "VIDEO"}),
    "MarkdownNote": ([], {}),
}
EXAMPLES = sorted((PACK / "example_workflows").glob("*.json"))


@pytest.fixture
def comfyui(tmp_path):
    (tmp_path / "ComfyUI" / "custom_nodes").mkdir(parents=True)
    return tmp_path / "ComfyUI"


def written(folder):
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.mark.parametrize("place", ["", "custom_nodes"])
def test_the_command_writes_the_folder(ditflow, comfyui, place):
    folder = comfyui / "custom_nodes" / "ditflow-comfyui"
    assert ditflow("comfyui", "install", comfyui / place) == f"{folder}\n"
    names = {"__init__.py", "pyproject.toml", *(f"example_workflows/{path.name}" for path in EXAMPLES)}
    assert set(written(folder)) == names and len(EXAMPLES) == 2


def test_it_updates_its_own_folder_and_keeps_other_files_in_it(ditflow, comfyui):
    ditflow("comfyui", "install", comfyui)
    folder = comfyui / "custom_nodes" / "ditflow-comfyui"
    new = written(folder)
    (folder / "__init__.py").write_text("old")
    (folder / "notes.txt").write_text("mine")
    ditflow("comfyui", "install", comfyui)
    assert written(folder) == new | {"notes.txt": b"mine"}


@pytest.mark.parametrize("content", [None, "[project]\nname = 'another'\n", "no toml ["])
def test_it_leaves_a_folder_that_is_not_its_own(ditflow, comfyui, content):
    folder = comfyui / "custom_nodes" / "ditflow-comfyui"
    folder.mkdir()
    (folder / "__init__.py").write_text("theirs")
    if content:
        (folder / "pyproject.toml").write_text(content)
    before = written(folder)
    code, error = ditflow("comfyui", "install", comfyui, fails=True)
    assert code == 1 and written(folder) == before
    assert error == f"ditflow: {folder} exists and is not the folder of these nodes: move it away\n"


def test_it_needs_a_folder_of_comfyui(ditflow, tmp_path):
    code, error = ditflow("comfyui", "install", tmp_path / "nowhere", fails=True)
    assert code == 1
    assert error == (
        f"ditflow: {tmp_path / 'nowhere'} has no folder custom_nodes: give ComfyUI's folder, or its "
        "custom_nodes\n"
    )


def test_a_folder_that_cannot_be_written_is_named(ditflow, comfyui):
    (comfyui / "custom_nodes" / "ditflow-comfyui").symlink_to(comfyui / "nothing" / "there")
    code, error = ditflow("comfyui", "install", comfyui, fails=True)
    assert code == 1 and "cannot be written" in error and error.count("\n") == 1


def test_the_registry_is_told_what_is_true():
    facts = tomllib.loads((PACK / "pyproject.toml").read_text(encoding="utf-8"))
    assert facts["project"]["version"] == __version__
    assert facts["project"]["license"] == {"text": "Apache-2.0"}
    assert facts["tool"]["comfy"]["DisplayName"] == "DiTFlow"
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def loaded_pack():
    """The pack as ComfyUI imports it: by its path."""
    spec = importlib.util.spec_from_file_location("pack_under_test", PACK / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_folder_gives_comfyui_the_nodes(comfy):
    extension = asyncio.run(loaded_pack().comfy_entrypoint())
    assert isinstance(extension, comfy.modules["comfy_api.latest"].ComfyExtension)
    names = [node.define_schema().node_id for node in asyncio.run(extension.get_node_list())]
    assert len(names) == len(set(names)) == 7 and all(name.startswith("Ditflow") for name in names)


def test_without_ditflow_it_says_where_to_install_it():
    bare = sys.executable, "-I", "-S", PACK / "__init__.py"  # Python without its packages
    error = subprocess.run(bare, capture_output=True, text=True).stderr.splitlines()[-1]
    assert error.startswith("ImportError: ditflow is not installed in ComfyUI's Python: install it with /")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_fits_the_nodes(nodes, path):
    workflow = json.loads(path.read_text(encoding="utf-8"))
    by_id = {node["id"]: node for node in workflow["nodes"]}
    links = {link[0]: link[1:] for link in workflow["links"]}
    for node in workflow["nodes"]:
        kinds = node["type"].removeprefix("Ditflow")
        if kinds in nodes:
            schema = nodes[kinds].define_schema()
            check_widgets(schema, node["widgets_values"])
            wanted = {each.id: each.io_type for each in schema.inputs}
            outputs = [each.io_type for each in schema.outputs]
            required = {each.id for each in schema.inputs if each.socket and not each.optional}
        else:
            outputs, wanted = CORE[node["type"]]
            required = set(wanted)
        assert [each["type"] for each in node["outputs"]] == outputs
        linked = {each["name"]: links[each["link"]] for each in node["inputs"] if each["link"]}
        assert required <= set(linked) <= set(wanted)
        for name, (origin, slot, target, _, kind) in linked.items():
            assert target == node["id"]
            assert by_id[origin]["outputs"][slot]["type"] == kind and kind in wanted[name].split(",")


def check_widgets(schema, values):
    """The values of a node's widgets, in order; a seed has one more, which the page uses."""
    values = list(values)
    for each in schema.inputs:
        if not each.socket:
            assert each.accepts(values.pop(0)), each.id
            if getattr(each, "control_after_generate", None):
                assert values.pop(0) in ("fixed", "randomize")
    assert not values
