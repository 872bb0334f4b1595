import numpy as np
import pytest
import torch
from stand_in import StandIn

FRAMES, HEIGHT, WIDTH = 9, 32, 48


@pytest.fixture(scope="module")
def comfy(tmp_path_factory):
    """ComfyUI's stand-in, from which `ditflow.comfyui` is imported anew."""
    with pytest.MonkeyPatch.context() as patch:
        stand_in = StandIn(tmp_path_factory.mktemp("temp"))
        stand_in.installed(patch)
        yield stand_in


@pytest.fixture(scope="module")
def nodes(comfy):
    """The nodes by their ids."""
    from ditflow.comfyui.extension import NODES

    return {node.define_schema().node_id.removeprefix("Ditflow"): node for node in NODES}


@pytest.fixture(scope="module")
def run_node(nodes):
    """Executes a node: inputs that are not given have their defaults; returns its outputs."""

    def run(name, **given):
        inputs = nodes[name].define_schema().inputs
        defaults = {each.id: each.default for each in inputs if not each.socket}
        return nodes[name].execute(**defaults | given).args

    return run


@pytest.fixture(scope="module")
def images():
    """A square that moves to the right over noise, as an IMAGE."""
    noise = np.random.default_rng(0).uniform(0, 0.3, (HEIGHT, WIDTH, 3)).astype(np.float32)
    frames = np.stack([noise] * FRAMES)
    for index, frame in enumerate(frames):
        frame[8:22, 3 * index : 3 * index + 14] = (0.9, 0.7, 0.2)
    return torch.from_numpy(frames)
