"""Describes this machine, and what a run on it would use, for a bug report.

Each probe imports what it needs, so the first lines appear at once and a failed import becomes a line of the
report. No weights are loaded. Private details are removed (`redaction`).
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from ditflow.cli.redaction import make_redactor
from ditflow.errors import DitflowError
from ditflow.files import json_text

if TYPE_CHECKING:
    import torch
    from packaging.requirements import Requirement

Lines = Iterator[tuple[str, str]]  # name, value

GIB = 1 << 30
DRIVER_TIMEOUT = 20  # seconds
EXTRAS = {
    "xformers": "--attention xformers",
    "tensorrt": "--engine tensorrt",
    "profile": "--profile under NVIDIA's tools",
    "quantize": "--weights nf4 or FILE.gguf",
    "eval": "ditflow evaluate",
    "bench": "make bench",
    "batch": "ditflow batch",
    "app": "ditflow app",
}


def print_facts(as_json: bool) -> None:
    """Print each fact as soon as it is known, or all of them as one JSON object of sections."""
    if as_json:
        found: dict[str, dict[str, str]] = {section: {} for section in PROBES}
        for section, name, value in facts():
            found[section][name] = value
        print(json_text(found))
        return
    last = None
    for section, name, value in facts():
        if section != last:
            print(section if last is None else f"\n{section}")
        print(f"  {name:<20} {value}")
        last = section
        if getattr(sys.stdout, "lost", None):  # nobody reads on
            return


def facts() -> Iterator[tuple[str, str, str]]:
    """(section, name, value) from every probe. Raises nothing: an error becomes the probe's value."""
    redact = make_redactor()
    for section, probes in PROBES.items():
        for probe in probes:
            try:
                for name, value in probe():
                    yield section, name, redact(value)
            except Exception as error:  # the other probes still run
                reason = _first_line(error)
                if not isinstance(error, DitflowError):
                    reason = f"unknown: {type(error).__name__}: {reason}"
                yield section, probe.__name__.strip("_"), redact(reason)


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
        found = ", ".join(f"{requirement.name} {_installed(requirement)}" for requirement in wanted)
        yield extra, f"{found} (for {purpose})"


def _requirements() -> list[Requirement]:
    """The packages that ditflow and its extras need."""
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
    """The GPUs that nvidia-smi sees; torch may not see all of them."""
    command = [
        "nvidia-smi",
        "--query-gpu=name,driver_version,memory.free,memory.total",
        "--format=csv,noheader",
    ]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=DRIVER_TIMEOUT)
    except FileNotFoundError:
        yield "driver", "nvidia-smi not found: no NVIDIA driver, or none in this container"
        return
    if answer.returncode:
        yield "driver", f"nvidia-smi fails: {(answer.stdout + answer.stderr).strip().splitlines()[0]}"
        return
    for number, line in enumerate(answer.stdout.splitlines()):
        name, version, free, total = (field.strip() for field in line.split(","))
        yield f"nvidia-smi GPU {number}", f"{name}, driver {version}, {free} free of {total}"


def cuda() -> Lines:
    import torch

    yield "torch", f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    for number in range(torch.cuda.device_count()):
        known = torch.cuda.get_device_properties(number)
        free, total = (f"{count / GIB:.1f}" for count in torch.cuda.mem_get_info(number))
        yield f"cuda:{number}", f"{known.name}, sm_{known.major}{known.minor}, {free} GiB free of {total}"


def weights() -> Lines:
    from ditflow.models.families import family_of, known_model, models, shipped_folder
    from ditflow.models.hub import cached_folder, missing_files

    for model in models():
        known, parts = known_model(model)["weights"], family_of(model).parts
        folder, where, remedy = shipped_folder(model), "in this package", "reinstall ditflow"
        if folder is None:
            folder, where = cached_folder(known["id"], parts), f"{known['id']} in the hub's cache"
            remedy = f"{known['download']} will be downloaded at first use"
        if folder is None:
            yield model, f"not on this machine: {remedy}"
        elif missing := missing_files(folder, parts):
            yield model, f"{where}, incomplete: lacks {missing[0]} and {len(missing) - 1} more; {remedy}"
        else:
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            yield model, f"{where}, complete, {size / GIB:.2f} GiB"


def disk() -> Lines:
    from huggingface_hub import constants

    from ditflow.files import NO_CACHE, cache_folder

    yield "current folder", _space(Path.cwd())
    for name, folder in (("hub's cache", Path(constants.HF_HUB_CACHE)), ("ditflow's cache", cache_folder())):
        lost = folder == NO_CACHE
        yield name, "none: no home folder is known" if lost else f"{folder}: {_space(folder.absolute())}"


def _space(folder: Path) -> str:
    """Free space on the disk that holds a folder, or would hold it once it is made."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    usage = shutil.disk_usage(existing)
    return f"{usage.free / GIB:.1f} GiB free of {usage.total / GIB:.1f}"


def device() -> Lines:
    from ditflow.jobs.device import choose_device
    from ditflow.settings import Settings

    yield "device", str(choose_device(Settings()))


def kernels() -> Lines:
    from ditflow_kernels.backends import capability_below_triton, fastest

    device = _any_device()
    if fastest(device) == "triton":
        from ditflow_kernels.tuning import architecture

        yield "kernels", f"triton, on sm_{architecture(device)}"
        return
    why = "triton is not installed"
    if device.type != "cuda":
        why = "the Triton kernels need a CUDA GPU"
    elif old := capability_below_triton(device):
        why = f"the Triton kernels need compute capability 8.0 or later, and this GPU has {old}"
    yield "kernels", f"{fastest(device)} (plain PyTorch): {why}"


def attention() -> Lines:
    import torch

    from ditflow.models.attention import KERNELS, load_attention
    from ditflow.settings import Settings

    device, settings = _any_device(), Settings()
    for name, kernel in KERNELS.items():
        problem = kernel.missing(device, getattr(torch, settings.dtype))
        if problem is None:
            try:
                load_attention(name)
            except DitflowError as error:
                problem = str(error)
        available = "available, the default" if name == settings.attention else "available"
        yield f"attention {name}", problem or available


def compiling() -> Lines:
    from ditflow.models.compiling import compiles

    device = _any_device()
    if device.type != "cuda":
        yield "compiling", "off: --compile auto compiles only on a CUDA GPU"
    else:
        compiles("on", device)  # raises if something is missing
        yield "compiling", "on: there is a GPU, and a compiler for it"


def engine() -> Lines:
    from ditflow.models.engine import check_engine
    from ditflow.settings import Settings

    yield f"engine {Settings().engine}", "available, the default"
    try:
        check_engine("tensorrt", needs_gradient=False, device=_any_device())
        yield "engine tensorrt", "available for runs that optimise nothing"
    except DitflowError as error:
        yield "engine tensorrt", str(error)


def preset() -> Lines:
    """The memory preset of a default run. The last probe, because planning takes a while on a GPU."""
    from ditflow.jobs.device import choose_device
    from ditflow.settings import Settings

    settings = Settings()
    device = choose_device(settings)

    from ditflow.planning.choice import choose_plan

    plan = choose_plan(settings, device)
    run = f"{settings.model}, {settings.frames} frames of {settings.size}"
    yield "preset", f"{plan.preset.name}: the fastest that fits {plan.budget / GIB:.1f} GiB ({run})"


def _any_device() -> torch.device:
    """The device that a run of a small model would use."""
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
    "what a run would use": (device, kernels, attention, compiling, engine, preset),
}
