import pytest
import torch

from pydfm.features.backbones import family_of, family_saved_as, load_network


def test_a_module_of_ones_own_is_copied_and_keeps_its_weights(tiny_network):
    tiny_network.train()
    network = load_network(tiny_network)
    assert network.name == network.backbone == "module:Sequential"
    assert network.layers == ("output",)
    assert network.weights is None
    assert network.module is not tiny_network
    assert not network.module.training
    assert tiny_network.training
    for key, value in tiny_network.state_dict().items():
        assert torch.equal(network.module.state_dict()[key], value)


def test_imagenet_means_the_weights_of_the_module(tiny_network, saved):
    for weights in ("imagenet", None):
        assert load_network(tiny_network, weights).weights is None
    path = saved()
    assert load_network(tiny_network, path).weights == str(path)


def test_the_caller_passes_the_module_again(tiny_network):
    family = family_saved_as("module:Sequential")
    assert family is family_of(tiny_network)
    assert family.in_memory
    with pytest.raises(ValueError, match="a module of the class Sequential, which is not in the f"):
        family.restore("module:Sequential")


def test_only_the_file_of_weights_is_needed(tiny_network):
    family = family_of(tiny_network)
    assert family.needed_files("module:Net", None) == {}
    assert family.needed_files("module:Net", "w.pth") == {"weights": "w.pth"}
    assert family.needed_files("module:Net", "w.pth", tiny_network) == {"weights": "w.pth"}
    assert family.needed_files("module:Net", "w.pth", tiny_network, "other.pth") == {}
    assert family.needed_files("module:Net", "w.pth", tiny_network, None) == {}
