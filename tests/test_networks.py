import hashlib
import pickle
import socket
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pydfm import networks
from pydfm.networks import TORCHVISION_NETWORKS, load_network
from pydfm.preprocessing import Preprocessing


def state_of(network):
    return network.module.state_dict()


def same(state, other):
    return state.keys() == other.keys() and all(torch.equal(state[k], other[k]) for k in state)


@pytest.fixture(scope="module")
def resnet18():
    """A state dict with all that a ResNet-18 has."""
    return dict(state_of(load_network("resnet18", None, "output", random_state=3)))


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
def hub(monkeypatch, tmp_path, resnet18):
    """A hub in a folder that has weights for resnet18, and an empty cache; returns their file."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    torch.save(resnet18, tmp_path / "weights.pth")
    digest = hashlib.sha256((tmp_path / "weights.pth").read_bytes()).hexdigest()
    file = (tmp_path / "weights.pth").rename(tmp_path / f"resnet18-{digest[:8]}.pth")
    weights = networks._torchvision_models().ResNet18_Weights.IMAGENET1K_V1
    monkeypatch.setattr(weights.value, "url", file.as_uri())
    return file


# Random weights


def test_random_weights_depend_on_their_own_seed_only():
    torch.manual_seed(1)
    first = load_network("resnet18", None, random_state=5)
    torch.manual_seed(2)
    again = load_network("resnet18", None, random_state=5)
    other = load_network("resnet18", None, random_state=6)
    assert same(state_of(first), state_of(again))
    assert first.sha256 == again.sha256 != other.sha256
    assert first.weights is None


def test_random_weights_leave_the_generators_of_torch_alone(monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    state = torch.get_rng_state()
    load_network("resnet18", None, random_state=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert not seeded


@pytest.mark.parametrize("random_state", [-1, 0.5, None])
def test_a_seed_must_be_a_number(random_state):
    with pytest.raises(ValueError, match="random_state is "):
        load_network("resnet18", None, random_state=random_state)


# Files of weights


@pytest.mark.parametrize("name", ["weights.pth", "weights.bin", "weights.safetensors"])
def test_weights_come_from_a_file(tiny_network, saved, name):
    path = saved(lambda state: {key: value + 1 for key, value in state.items()}, name)
    for given in (path, str(path)):
        network = load_network(tiny_network, given)
        assert network.weights == str(path)
        for key, value in tiny_network.named_parameters():
            assert torch.equal(state_of(network)[key], value + 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
        lambda state: {key: value.double() for key, value in state.items()},
    ],
)
def test_a_state_dict_may_be_wrapped_as_trainers_do(tiny_network, saved, change):
    want = load_network(tiny_network, None).sha256
    assert load_network(tiny_network, saved(change)).sha256 == want


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: {**state, "extra": torch.zeros(1)}, "has 'extra', which is not in it$"),
        (lambda state: {"stem.bias": state["stem.bias"]}, r"lacks 'block.0.bias' \(and \d+ more\)"),
        (lambda state: {**state, "stem.bias": torch.zeros(9)}, "size mismatch for stem.bias"),
        (lambda state: [1, 2], "does not hold a state dict of tensors"),
        (lambda state: {"epoch": 3}, "does not hold a state dict of tensors"),
    ],
)
def test_a_file_for_another_network_is_told_in_one_sentence(tiny_network, saved, change, says):
    path = saved(change)
    with pytest.raises(ValueError, match=f"^weights is '{path}', which .*{says}") as caught:
        load_network(tiny_network, path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", None])
def test_a_file_that_is_no_state_dict_is_told(tiny_network, tmp_path, name, content):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot be read as a state dict; it must be a .safeten"):
        load_network(tiny_network, path)


class Harmful:
    """What would write a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("dump", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))])
def test_a_pickled_object_is_refused_and_not_run(tiny_network, tmp_path, dump):
    path = tmp_path / "weights.pth"
    dump({"stem.weight": Harmful(tmp_path / "harm")}, path)
    with pytest.raises(ValueError, match="tensors only, no pickled objects"):
        load_network(tiny_network, path)
    assert not (tmp_path / "harm").exists()


def test_a_part_of_a_network_is_enough_for_its_early_layers(resnet18, tmp_path):
    part = {k: v for k, v in resnet18.items() if not k.startswith(("layer4.", "fc."))}
    save_file(part, tmp_path / "part.safetensors")
    torch.save(resnet18, tmp_path / "whole.pth")
    early = load_network("resnet18", tmp_path / "part.safetensors", "layer3")
    assert early.sha256 == load_network("resnet18", tmp_path / "whole.pth", "layer3").sha256
    assert early.preprocessing == Preprocessing()
    with pytest.raises(ValueError, match="is not for resnet18: it lacks 'layer4"):
        load_network("resnet18", tmp_path / "part.safetensors", "avgpool")


@pytest.mark.parametrize(
    ("layers", "kept"),
    [
        ("layer1", {"conv1", "bn1", "layer1"}),
        (("layer2.0.conv1", "layer1"), {"conv1", "bn1", "layer1", "layer2"}),
        (None, {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}),
        ("output", {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"}),
    ],
)
def test_nothing_is_kept_of_what_comes_after_the_last_layer(layers, kept):
    state = state_of(load_network("resnet18", None, layers))
    assert {key.split(".")[0] for key in state} == kept


def test_the_fingerprint_is_that_of_the_tensors_used(tiny_network):
    first = load_network(tiny_network).sha256
    tiny_network.block[1].num_batches_tracked += 1
    assert load_network(tiny_network).sha256 == first
    with torch.no_grad():
        tiny_network.head.bias[0] += 1e-3
    assert load_network(tiny_network).sha256 != first


# Names


@pytest.mark.parametrize("backbone", ["resnet19", "missing.pt", 18, None])
def test_an_unknown_backbone_lists_those_there_are(backbone):
    with pytest.raises(ValueError, match="^backbone is .*" + ", ".join(TORCHVISION_NETWORKS)):
        load_network(backbone, None)


def test_an_unknown_layer_lists_those_there_are(tiny_network):
    with pytest.raises(ValueError, match=r"layers has 'layer9'.* it has conv1, bn1, .*'layer1.0'"):
        load_network("resnet18", None, ("layer1", "layer9"))
    with pytest.raises(
        ValueError, match=r"it has stem, .*, head, output, and .* such as 'block.0'"
    ):
        load_network(tiny_network, layers="")
    with pytest.raises(ValueError, match="each layer may be named once"):
        load_network(tiny_network, layers=["stem", "stem"])


def test_unknown_weights_list_those_there_are():
    with pytest.raises(ValueError, match=r"^weights is 'imagnet'.* IMAGENET1K_V1, IMAGENET1K_V2"):
        load_network("resnet50", "imagnet")


def test_a_module_of_ones_own_is_copied_and_keeps_its_weights(tiny_network):
    tiny_network.train()
    network = load_network(tiny_network)
    assert network.name == "module:Sequential"
    assert network.layers == ("output",)
    assert network.weights is None
    assert network.module is not tiny_network
    assert not network.module.training
    assert tiny_network.training
    assert same(state_of(network), tiny_network.state_dict())


# TorchScript files


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_torchscript_file_brings_its_own_weights(tiny_network, tmp_path):
    path = tmp_path / "network.pt"
    torch.jit.script(tiny_network.eval()).save(path)
    network = load_network(path)
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(network.module(images), tiny_network(images))
    assert (network.name, network.layers, network.weights) == (
        "torchscript",
        ("output",),
        str(path),
    )
    assert network.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=r"layers has 'stem', .* it has output$"):
        load_network(path, layers="stem")


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04"])
def test_a_file_that_is_not_torchscript_is_told(tmp_path, content):
    path = tmp_path / "network.pt"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"is not a TorchScript file; .* pass this file as weights"
    ):
        load_network(path)


# Downloads


def test_weights_are_downloaded_once_without_a_word(hub, resnet18, capfd):
    network = load_network("resnet18", "imagenet", "output")
    hub.unlink()
    again = load_network("resnet18", "IMAGENET1K_V1", "output")
    assert same(state_of(network), resnet18)
    assert network.sha256 == again.sha256
    assert network.weights == again.weights == "IMAGENET1K_V1"
    assert network.preprocessing == Preprocessing()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("at_a_terminal", [True, False])
def test_the_progress_of_a_download_is_shown_at_a_terminal(hub, capfd, monkeypatch, at_a_terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: at_a_terminal)
    load_network("resnet18", progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert (hub.as_uri() in err) == at_a_terminal
    assert (err != "") == at_a_terminal


@pytest.mark.usefixtures("hub")
def test_a_wrong_layer_is_told_before_anything_is_downloaded(monkeypatch):
    monkeypatch.setattr(networks, "_download", None)
    with pytest.raises(ValueError, match="layers has 'layer9'"):
        load_network("resnet18", "imagenet", "layer9")


def test_a_download_that_fails_says_what_to_pass(hub, capfd):
    hub.unlink()
    with pytest.raises(ConnectionError) as caught:
        load_network("resnet18")
    assert hub.as_uri() in str(caught.value)
    assert "pass as weights the path of a file (.pth or .safetensors), or none" in str(caught.value)
    assert socket.getdefaulttimeout() is None
    assert capfd.readouterr() == ("", "")


def test_a_download_of_something_else_is_refused(hub):
    hub.write_bytes(b"<html>Please log in to the proxy</html>")
    with pytest.raises(ConnectionError, match=r"invalid hash value.*pass as weights the path"):
        load_network("resnet18")


# The import of torchvision


@pytest.mark.parametrize("tried_before", [False, True])
def test_torchvision_can_be_imported_whether_its_operators_load_or_not(run_python, tried_before):
    # A bare import fails beside a CPU build of torch, and leaves half of torchvision behind.
    code = f"""
        import contextlib
        from pydfm.networks import load_network
        if {tried_before}:
            with contextlib.suppress(RuntimeError):
                import torchvision
        first, again = load_network("resnet18", None), load_network("resnet18", None)
        assert first.sha256 == again.sha256
        import torchvision
        """
    run_python(textwrap.dedent(code), PYTHONWARNINGS="error")


def test_another_failure_of_torchvision_is_not_hidden(monkeypatch):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "torchvision":
                raise RuntimeError("out of disk")

    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(RuntimeError, match="out of disk"):
        networks._torchvision_models()
