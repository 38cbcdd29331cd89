import pytest
import torch
from fits import scripted
from safetensors.torch import save_file

from pydfm.features.backbones import load_network


@pytest.fixture(scope="session")
def resnet18_state():
    """A state dict with all that a ResNet-18 has."""
    network = load_network("resnet18", None, "output", random_state=3)
    return dict(network.module.state_dict())


@pytest.fixture
def saved(tiny_network, tmp_path):
    """Write what becomes of the state dict of `tiny_network`, and return the path."""

    def save(change=lambda state: state, name="weights.pth"):
        path = tmp_path / name
        state = change(dict(tiny_network.state_dict()))
        (save_file if name.endswith(".safetensors") else torch.save)(state, path)
        return path

    return save


@pytest.fixture
def script(tiny_network, tmp_path):
    """`tiny_network` as a TorchScript file."""
    path = tmp_path / "network.pt"
    scripted(tiny_network.eval()).save(path)
    return path
