"""setup.py, lists of versions, workflows, messages and documentation agree, and a wheel is complete."""

import ast
import re
import runpy
import subprocess
import sys
from importlib import metadata

import pytest
import setuptools
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from repository import ROOT

from ditflow.cli import doctor

# import name: package, where they differ
PACKAGES = {
    "PIL": "pillow",
    "google": "protobuf",
    "cv2": "opencv-python-headless",
    "torch_tensorrt": "torch-tensorrt",
    "yaml": "pyyaml",
}
UNDECLARED = {"flash_attn", "sageattention"}  # not on PyPI as wheels: `--attention` says how to install them
COMFYUI = {"comfy", "comfy_api", "folder_paths"}  # modules of the program that imports our nodes
ADVICE = re.compile(r"ditflow\[([\w,-]+)\]")


@pytest.fixture(scope="module")
def setup():
    """The arguments of setup.py's `setup`."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **arguments: found.update(arguments))
        runpy.run_path(str(ROOT / "setup.py"))
    return found


@pytest.fixture(scope="module")
def requirements(setup):
    lines = [
        *setup["install_requires"],
        *(line for extra in setup["extras_require"].values() for line in extra),
    ]
    return [Requirement(line) for line in lines]


def listed(name):
    """The versions in a constraints file, by package."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return {
        canonicalize_name(package): version
        for package, _, version in (line.partition("==") for line in lines)
    }


def floors(requirements):
    found = {}
    for requirement in requirements:
        for part in requirement.specifier:
            assert part.operator == ">=", f"{requirement} is not a floor"
            assert found.setdefault(canonicalize_name(requirement.name), part.version) == part.version
    return found


def test_floors_are_those_of_setup(requirements):
    assert listed("floors.txt") == floors(requirements)


def test_pinned_versions_are_of_all_packages_and_allowed(requirements):
    pinned = listed("constraints.txt")
    for requirement in requirements:
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def tracked(*folders):
    command = ["git", "ls-files", "--", *folders]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / line for line in done.stdout.splitlines()]


def third_party(path):
    """Packages that a file imports, by their import names."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0]


def test_every_imported_package_is_declared(requirements):
    ours = sys.stdlib_module_names | UNDECLARED | COMFYUI | {"ditflow", "ditflow_kernels"}
    declared = {canonicalize_name(requirement.name) for requirement in requirements}
    used = {
        name: path
        for path in tracked("ditflow", "kernels/ditflow_kernels")
        if path.suffix == ".py"
        for name in third_party(path)
        if name not in ours
    }
    assert used, "no import found"
    missing = {n: p for n, p in used.items() if canonicalize_name(PACKAGES.get(n, n)) not in declared}
    assert not missing


def test_every_extra_in_a_message_exists(setup):
    files = [
        path
        for path in tracked("ditflow", "kernels", "bench", "docs", "README.md")
        if path.suffix in (".py", ".md")
    ]
    named = {
        (extra, path)
        for path in files
        for found in ADVICE.findall(path.read_text(encoding="utf-8"))
        for extra in found.split(",")
    }
    assert {"quantize", "profile", "xformers", "tensorrt", "eval"} <= {extra for extra, _ in named}
    assert not [pair for pair in named if pair[0] not in setup["extras_require"]]


def test_doctor_and_documentation_know_every_extra_and_package(setup, requirements):
    assert set(doctor.EXTRAS) == set(setup["extras_require"]) - {"dev"}
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == set(setup["extras_require"])
    core = {Requirement(line).name for line in setup["install_requires"]}
    rows = re.findall(r"^\| ([\w, -]+) \|", page, re.MULTILINE)
    assert core <= {name for row in rows for name in row.split(", ")}


def test_supported_pythons_are_those_of_the_workflow(setup):
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "versions.yml").read_text(encoding="utf-8"))
    matrix = workflow["jobs"]["test"]["strategy"]["matrix"]
    named = [
        re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line) for line in setup["classifiers"]
    ]
    assert [found[1] for found in named if found] == matrix["python"]
    assert {row["packages"] for row in matrix["include"]} == set(matrix["packages"])
    assert setup["python_requires"] == f">={matrix['python'][0]}"


def test_a_wheel_has_every_tracked_file(setup):
    """Every file in a package's folder is Python of a listed package, or matches its `package_data`."""
    folders = {ROOT / folder: name for name, folder in setup["package_dir"].items()}
    assert set(folders.values()) == set(setup["packages"])
    data = {
        path
        for folder, name in folders.items()
        for pattern in setup["package_data"].get(name, ())
        for path in folder.glob(pattern)
    }
    packed = tracked("ditflow", "configs", "kernels/ditflow_kernels")
    assert {path.suffix for path in packed} > {".py", ".yaml", ".safetensors", ".css", ".js"}
    left_out = [p for p in packed if p not in data and not (p.suffix == ".py" and p.parent in folders)]
    assert [path.name for path in left_out if path.suffix != ".md"] == []


def test_metadata_for_a_package_index(setup):
    for key in ("author", "description", "long_description", "license", "keywords", "classifiers"):
        assert setup[key]
    assert setup["license"] in (ROOT / "README.md").read_text(encoding="utf-8")
    assert metadata.metadata("ditflow")["Name"] == setup["name"]
