"""The file of a run whose motion was chosen: what resuming, reports and evaluation need of it."""

from __future__ import annotations

from ditflow.errors import DitflowError
from ditflow.files import inside
from ditflow.models.protocols import Grid
from ditflow.motion.chosen import TENSORS, ChosenMotion
from ditflow.run_folder.run import Run, read_tensors
from ditflow.settings import Settings

MOTION = "motion.safetensors"


def save_chosen(run: Run, chosen: ChosenMotion) -> None:
    run.write_tensors(MOTION, {name: tensor.float() for name, tensor in chosen.tensors.items()})


def load_chosen(run: Run, settings: Settings, grid: Grid) -> ChosenMotion:
    """The chosen motion of a run. Raises DitflowError if its file is missing or damaged."""
    path = inside(run.folder, MOTION)
    tensors, _ = read_tensors(path, "every transfer with a chosen motion writes it; start a new run")
    cells = grid.height * grid.width
    shapes = dict.fromkeys(TENSORS, (grid.frames, grid.frames, cells, 2)) | {"counted": (grid.frames, cells)}
    chosen_by = {
        "counted": settings.masked_by,
        "camera": settings.transfer == "camera",
        "elsewhere": settings.camera_from,
        "drawn": settings.motion,
    }
    for name, given in chosen_by.items():
        if bool(given) != (name in tensors):
            raise DitflowError(f"{path} is damaged: `{name}` is not there as the run's settings say")
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != shapes.get(name) or not tensor.is_floating_point():
            raise DitflowError(f"{path} is damaged: `{name}` is not one of its tensors, or has another shape")
    if "counted" in tensors:
        tensors["counted"] = tensors["counted"] > 0.5
    return ChosenMotion(settings, grid, **tensors)
