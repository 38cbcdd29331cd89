import hashlib
from pathlib import Path

import pytest
import torch

from pydfm.features.backbones import family_of, family_saved_as, load_network

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


def test_a_torchscript_file_contains_its_own_weights(tiny_network, script):
    for given in (script, str(script)):
        network = load_network(given)
        images = torch.rand(2, 3, 16, 16)
        assert torch.equal(network.module(images), tiny_network(images))
        assert (network.name, network.layers) == ("torchscript", ("output",))
        assert network.backbone == network.weights == str(script)
        assert network.sha256 == hashlib.sha256(script.read_bytes()).hexdigest()


def test_a_torchscript_file_has_no_layers_but_its_output(script):
    with pytest.raises(ValueError, match=r"layers has 'stem', .* it has output$"):
        load_network(script, layers="stem")


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04"])
def test_a_file_that_is_not_torchscript_is_told(tmp_path, content):
    path = tmp_path / "network.pt"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"is not a TorchScript file; .* pass this file as weights"
    ):
        load_network(path)


def test_a_path_of_any_name_is_a_torchscript_file(script, monkeypatch):
    monkeypatch.chdir(script.parent)
    family = family_of(script)
    assert family_saved_as(str(script)) is family_saved_as("net") is family
    assert family.restore("net") == "net"
    assert not family.in_memory
    script.rename(script.with_name("resnet18"))
    assert family_of("resnet18") is not family
    assert family_of(Path("resnet18")) is family


def test_the_file_is_needed_unless_another_is_given():
    family = family_saved_as("a/net.pt")
    assert family.needed_files("a/net.pt", "a/net.pt") == {"backbone": "a/net.pt"}
    assert family.needed_files("a/net.pt", "a/net.pt", None, "w.pth") == {"backbone": "a/net.pt"}
    assert family.needed_files("a/net.pt", "a/net.pt", "b/net.pt") == {}
