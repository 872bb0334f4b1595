"""Compares the tensors in weight files with those of a network. Reads only the files' headers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from safetensors import safe_open
from torch import nn

from ditflow.errors import DitflowError
from ditflow.models.trust import Header, read_headers, read_json

WHOLE = ("diffusion_pytorch_model.safetensors", "model.safetensors")
NAMED = 4  # tensors of each kind that a message names
OtherName = Callable[[str], str]  # what other files may call a layer, by the library's name
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


def check_tensors(network: nn.Module, files: Iterable[Path]) -> None:
    """Check that files hold exactly a network's tensors; the network may be on the meta device.

    Tied weights need to be there once. Raises as `read_headers`, and ValueError that names the tensors that
    are missing, unexpected or do not fit.
    """
    found: dict[str, Header] = {}
    places: dict[str, Path] = {}
    twice = []
    for path in files:
        headers = read_headers(path)
        twice += [f"{name} in {places[name].name} and {path.name}" for name in headers if name in found]
        found |= headers
        places |= dict.fromkeys(headers, path)
    wanted = network.state_dict()
    parameters = dict(network.named_parameters(remove_duplicate=False))
    here = {id(parameters[name]) for name in found if name in parameters}
    ignored = getattr(network, "_keys_to_ignore_on_load_unexpected", None) or ()  # by the library too
    tied: dict[int, list[str]] = {}
    for name in found.keys() & parameters.keys():
        tied.setdefault(id(parameters[name]), []).append(name)
    problems = {
        "given twice": twice,
        "tied, but different": [
            " and ".join(sorted(names)) for names in tied.values() if not _are_equal(names, places)
        ],
        "missing": [name for name in wanted if name not in found and id(parameters.get(name)) not in here],
        "unexpected": [
            name
            for name in found
            if name not in wanted and not any(re.search(pattern, name) for pattern in ignored)
        ],
        "of another shape": [
            f"{name} is {list(found[name].shape)}, expected {list(tensor.shape)}"
            for name, tensor in wanted.items()
            if name in found and found[name].shape != tensor.shape
        ],
        "not floating-point": [
            f"{name} is {found[name].kind}"
            for name, tensor in wanted.items()
            if name in found and tensor.is_floating_point() and found[name].kind not in FLOATS
        ],
    }
    if any(problems.values()):
        raise ValueError(f"its weights do not fit its config.json: {counted(problems)}")


def _are_equal(names: Sequence[str], places: Mapping[str, Path]) -> bool:
    """Whether tensors in files are the same; reads them if there are several."""
    if len(names) == 1:
        return True
    values = []
    for name in names:
        with safe_open(places[name], "pt") as file:
            values.append(file.get_tensor(name))
    return all(value.equal(values[0]) for value in values[1:] if value.shape == values[0].shape)


def counted(problems: Mapping[str, Sequence[str]]) -> str:
    """Each kind of problem with the number of tensors and the first names, such as "missing: 2 (a, b)"."""
    return "; ".join(
        f"{kind}: {len(names)} ({', '.join(names[:NAMED])}{', ...' if len(names) > NAMED else ''})"
        for kind, names in problems.items()
        if names
    )


def weight_files(folder: Path) -> list[Path]:
    """The files from which a library loads a part's weights. Raises DitflowError if it could be two sets."""
    whole = [folder / name for name in WHOLE if (folder / name).exists()]
    indexes = list(folder.glob("*.safetensors.index.json"))
    if len(whole) + len(indexes) > 1:
        names = " and ".join(path.name for path in [*whole, *indexes])
        raise DitflowError(f"{folder} has {names}, and only one can be right: remove the others")
    if not indexes:
        return whole
    return [folder / name for name in sorted(set(read_json(indexes[0])["weight_map"].values()))]
