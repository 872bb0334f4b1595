"""What this machine has and what a run would use of it, as lines to paste into a bug report.

A probe imports what it asks only then: the first lines come at once, and where one fails that is its line.
No weights are loaded, and nothing tells who asks (`private.py`).
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from ditflow.cli.redaction import without_private
from ditflow.errors import DitflowError

if TYPE_CHECKING:
    import torch
    from packaging.requirements import Requirement

Lines = Iterator[tuple[str, str]]  # name, what was found

GIB = 1 << 30
PATIENCE = 20  # seconds for the driver to answer
EXTRAS = {
    "lora": "--lora",
    "xformers": "--attention xformers",
    "tensorrt": "--engine tensorrt",
    "profile": "--profile under NVIDIA's tools",
    "quantize": "--weights nf4 or FILE.gguf",
    "eval": "ditflow evaluate",
}


def print_facts(as_json: bool) -> None:
    """Print everything: line by line as it is found, or as one JSON object of sections."""
    if as_json:
        found: dict[str, dict[str, str]] = {section: {} for section in PROBES}
        for section, name, value in facts():
            found[section][name] = value
        print(json.dumps(found, indent=2))
        return
    last = None
    for section, name, value in facts():
        if section != last:
            print(section if last is None else f"\n{section}")
        print(f"  {name:<20} {value}", flush=True)
        last = section


def facts() -> Iterator[tuple[str, str, str]]:
    """(section, name, what was found) of every probe. Raises nothing."""
    private = without_private()
    for section, probes in PROBES.items():
        for probe in probes:
            try:
                for name, value in probe():
                    yield section, name, private(value)
            except Exception as error:  # whatever it is, the other probes go on
                reason = _first_line(error)
                if not isinstance(error, DitflowError):
                    reason = f"cannot be told: {type(error).__name__}: {reason}"
                yield section, probe.__name__.strip("_"), private(reason)


def system() -> Lines:
    yield "python", platform.python_version()
    yield "system", f"{platform.platform()}, {os.cpu_count()} cores"


def host_memory() -> Lines:
    import psutil

    memory = psutil.virtual_memory()
    yield "host memory", f"{memory.available / GIB:.1f} GiB free of {memory.total / GIB:.1f}"


def packages() -> Lines:
    yield "ditflow", metadata.version("ditflow")
    for requirement in _requirements():
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement.name, _installed(requirement)


def extras() -> Lines:
    requirements = _requirements()
    for extra, purpose in EXTRAS.items():
        wanted = [
            requirement
            for requirement in requirements
            if requirement.marker is not None
            and requirement.marker.evaluate({"extra": extra})
            and not requirement.marker.evaluate({"extra": ""})
        ]
        there = ", ".join(f"{requirement.name} {_installed(requirement)}" for requirement in wanted)
        yield extra, f"{there} (for {purpose})"


def _requirements() -> list[Requirement]:
    """Of this package, those of its extras included."""
    from packaging.requirements import Requirement

    return [Requirement(line) for line in metadata.requires("ditflow") or []]


def _installed(requirement: Requirement) -> str:
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return "is not installed"
    fits = requirement.specifier.contains(version, prereleases=True)
    return version if fits else f"{version}, but {requirement.specifier} is needed"


def driver() -> Lines:
    """As the driver's own program tells it: torch may not see a GPU that is there."""
    asked = [
        "nvidia-smi",
        "--query-gpu=name,driver_version,memory.free,memory.total",
        "--format=csv,noheader",
    ]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=PATIENCE)
    except FileNotFoundError:
        yield "driver", "there is no nvidia-smi: no NVIDIA driver, or none in this container"
        return
    if answer.returncode:
        yield "driver", f"nvidia-smi fails: {(answer.stdout + answer.stderr).strip().splitlines()[0]}"
        return
    for number, line in enumerate(answer.stdout.splitlines()):
        name, version, free, total = (field.strip() for field in line.split(","))
        yield f"GPU {number}, by driver", f"{name}, driver {version}, {free} free of {total}"


def cuda() -> Lines:
    import torch

    yield "torch", f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    for number in range(torch.cuda.device_count()):
        known = torch.cuda.get_device_properties(number)
        free, total = (f"{count / GIB:.1f}" for count in torch.cuda.mem_get_info(number))
        yield f"cuda:{number}", f"{known.name}, sm_{known.major}{known.minor}, {free} GiB free of {total}"


def weights() -> Lines:
    from ditflow.models.hub import cached_folder, missing_files
    from ditflow.settings.settings import MODELS, shipped
    from ditflow.small import SMALL_MODELS, pipeline_folder

    for model in MODELS:
        if model in SMALL_MODELS:
            folder, where, otherwise = pipeline_folder(model), "in this package", "reinstall ditflow"
        else:
            known = shipped(f"models/{model}.yaml")["weights"]
            folder, where = cached_folder(known["id"]), f"{known['id']} in the hub's cache"
            otherwise = f"{known['download']} are downloaded when it is first used"
        if folder is None:
            yield model, f"not here: {otherwise}"
        elif missing := missing_files(folder):
            yield model, f"{where}, incomplete: lacks {missing[0]} and {len(missing) - 1} more; {otherwise}"
        else:
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            yield model, f"{where}, complete, {size / GIB:.2f} GiB"


def disk() -> Lines:
    from huggingface_hub import constants

    from ditflow.files import cache_folder

    yield "current folder", _space(Path.cwd())
    for name, folder in (("hub's cache", Path(constants.HF_HUB_CACHE)), ("own cache", cache_folder())):
        yield name, f"{folder}: {_space(folder.absolute())}"


def _space(folder: Path) -> str:
    """Of the disk that a folder is on, or would be on."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    usage = shutil.disk_usage(there)
    return f"{usage.free / GIB:.1f} GiB free of {usage.total / GIB:.1f}"


def device() -> Lines:
    from ditflow.jobs.device import choose_device
    from ditflow.settings import Settings

    yield "device", str(choose_device(Settings()))


def kernels() -> Lines:
    from ditflow_kernels.backends import FASTEST

    device = _any_device()
    if FASTEST[device.type] == "triton":
        from ditflow_kernels.launch import architecture

        yield "kernels", f"triton, on sm_{architecture(device)}"
    else:
        why = "triton is not installed" if device.type == "cuda" else "triton's need a CUDA GPU"
        yield "kernels", f"{FASTEST[device.type]}, plain PyTorch: {why}"


def attention() -> Lines:
    import torch

    from ditflow.models.attention import KERNELS, load_attention
    from ditflow.settings import Settings

    device, settings = _any_device(), Settings()
    for name, kernel in KERNELS.items():
        found = kernel.missing(device, getattr(torch, settings.dtype))
        if found is None:
            try:
                load_attention(name)
            except DitflowError as error:
                found = str(error)
        there = "used unless --attention says otherwise" if name == settings.attention else "available"
        yield f"attention {name}", found or there


def compiling() -> Lines:
    from ditflow.models.compiling import compiles

    device = _any_device()
    if device.type != "cuda":
        yield "compiling", "off: --compile auto does on a CUDA GPU"
    else:
        compiles("on", device)  # raises where something is missing
        yield "compiling", "on: a GPU, and a compiler for it"


def engine() -> Lines:
    from ditflow.models.engine import check_engine
    from ditflow.settings import Settings

    yield "engine", f"{Settings().engine}, unless --engine says otherwise"
    try:
        check_engine("tensorrt", needs_gradient=False, device=_any_device(), streams=False)
        yield "engine tensorrt", "available where nothing is optimised"
    except DitflowError as error:
        yield "engine tensorrt", str(error)


def preset() -> Lines:
    """Planned as a run does, which takes a while where there is a GPU: it comes last."""
    from ditflow.jobs.device import choose_device
    from ditflow.settings import Settings

    settings = Settings()
    device = choose_device(settings)

    from ditflow.planning.choice import choose_plan

    plan = choose_plan(settings, device)
    run = f"{settings.model}, {settings.frames} frames of {settings.size}"
    yield "preset", f"{plan.preset.name}: the fastest that fits {plan.budget / GIB:.1f} GiB ({run})"


def _any_device() -> torch.device:
    """Where a run computes, were no model too large for a CPU."""
    import torch

    from ditflow.jobs.device import choose_device
    from ditflow.settings import Settings

    return choose_device(Settings(device="cuda" if torch.cuda.is_available() else "cpu"))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "no reason given")


PROBES: dict[str, tuple[Callable[[], Lines], ...]] = {
    "machine": (system, host_memory, driver, cuda),
    "packages": (packages,),
    "extras": (extras,),
    "weights": (weights,),
    "disk": (disk,),
    "what a run uses": (device, kernels, attention, compiling, engine, preset),
}
