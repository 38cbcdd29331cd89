import threading

import pytest
import torch
from torch import nn

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


class Remembers(nn.Module):
    """A network that keeps what it finds, as for a plot, in several places."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.seen, self.kept, self.by_name = None, [], {}
        self.lock = threading.Lock()

    def forward(self, batch):
        self.seen = self.first(batch).relu()
        self.kept.append((self.seen,))
        self.by_name["first"] = self.seen
        return self.seen.mean((2, 3))


@pytest.mark.parametrize("norm", [None, nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*spectral_norm.* is deprecated:FutureWarning")
def test_a_module_that_keeps_tensors_of_its_last_pass_is_copied(norm):
    net = Remembers()
    if norm is not None:
        norm(net.first)
    image = torch.rand(1, 3, 8, 8)
    net.eval()
    net(image)
    copied = load_network(net).module
    assert torch.equal(copied(image), net(image))
    assert net.seen.requires_grad
    assert copied.seen is not net.seen


def test_what_cannot_be_copied_is_named(tiny_network):
    tiny_network.block.numbers = (i for i in range(3))
    with pytest.raises(ValueError, match=r"^backbone keeps in 'block\.numbers' a generator, which"):
        load_network(tiny_network)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_compiled_module_is_the_module_itself(tiny_network):
    compiled = torch.compile(tiny_network)
    for layers in (("stem",), ("_orig_mod.stem",)):
        network = load_network(compiled, layers=layers)
        assert (network.name, network.layers) == ("module:Sequential", ("stem",))
        assert network.sha256 == load_network(tiny_network).sha256
