import hashlib
import socket
import sys
import textwrap

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pydfm.features.backbones import family_of, family_saved_as, load_network, torchvision
from pydfm.features.network import Backbone
from pydfm.features.transforms import Preprocessing


def same(state, other):
    return state.keys() == other.keys() and all(torch.equal(state[k], other[k]) for k in state)


@pytest.fixture
def hub(monkeypatch, tmp_path, resnet18_state):
    """A hub in a folder that has weights for resnet18, and an empty cache; returns their file."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    torch.save(resnet18_state, tmp_path / "weights.pth")
    digest = hashlib.sha256((tmp_path / "weights.pth").read_bytes()).hexdigest()
    file = (tmp_path / "weights.pth").rename(tmp_path / f"resnet18-{digest[:8]}.pth")
    weights = torchvision.torchvision_models().ResNet18_Weights.IMAGENET1K_V1
    monkeypatch.setattr(weights.value, "url", file.as_uri())
    return file


# Random weights


def test_random_weights_depend_on_their_own_seed_only():
    torch.manual_seed(1)
    first = load_network("resnet18", None, random_state=5)
    torch.manual_seed(2)
    again = load_network("resnet18", None, random_state=5)
    other = load_network("resnet18", None, random_state=6)
    assert same(first.module.state_dict(), again.module.state_dict())
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


# Files and names of weights


def test_a_part_of_a_network_is_enough_for_its_early_layers(resnet18_state, tmp_path):
    part = {k: v for k, v in resnet18_state.items() if not k.startswith(("layer4.", "fc."))}
    save_file(part, tmp_path / "part.safetensors")
    torch.save(resnet18_state, tmp_path / "whole.pth")
    early = load_network("resnet18", tmp_path / "part.safetensors", "layer3")
    assert early.sha256 == load_network("resnet18", tmp_path / "whole.pth", "layer3").sha256
    assert early.preprocessing == Preprocessing()
    with pytest.raises(ValueError, match="is not for resnet18: it lacks 'layer4"):
        load_network("resnet18", tmp_path / "part.safetensors", "avgpool")


def test_unknown_weights_list_those_there_are():
    with pytest.raises(ValueError, match=r"^weights is 'imagnet'.* IMAGENET1K_V1, IMAGENET1K_V2"):
        load_network("resnet50", "imagnet")


def test_files_of_weights_are_needed_and_names_are_not():
    family = family_saved_as("resnet18")
    assert family is family_of("resnet18")
    assert family.restore("resnet18") == "resnet18"
    assert family.needed_files("resnet18", None) == {}
    assert family.needed_files("resnet18", "IMAGENET1K_V1") == {}
    for path in ("w.pth", "folder/w"):
        assert family.needed_files("resnet18", path) == {"weights": path}
        assert family.needed_files("resnet18", path, "resnet18", "other.pth") == {}


# Downloads


def test_weights_are_downloaded_once_without_a_word(hub, resnet18_state, capfd):
    network = load_network("resnet18", "imagenet", "output")
    hub.unlink()
    again = load_network("resnet18", "IMAGENET1K_V1", "output")
    assert same(network.module.state_dict(), resnet18_state)
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
    monkeypatch.setattr(torchvision, "_download", None)
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
        from pydfm.features.backbones import load_network
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
        torchvision.torchvision_models()


@pytest.mark.parametrize("size", [(32, 64), (64, 64)])
def test_a_vit_takes_images_of_other_sizes(monkeypatch, size):
    def small(_name, _random_state):
        torch.manual_seed(0)
        vit = torchvision.torchvision_models().VisionTransformer
        return vit(64, 16, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=8, num_classes=3)

    monkeypatch.setattr(torchvision, "_build", small)
    layer = "encoder.layers.encoder_layer_0"
    network = load_network("vit_b_16", None, layer)
    images = torch.rand(2, 3, *size)
    raw = Preprocessing(size, None, mean=(0.0,) * 3, std=(1.0,) * 3)
    backbone = Backbone(network, raw, device="cpu")
    (grid,) = backbone.grids
    assert (grid.channels, grid.height, grid.width) == (8, size[0] // 16, size[1] // 16)
    got = backbone(images.numpy())
    if size == (64, 64):
        untouched, kept = small("", 0).eval(), []
        untouched.get_submodule(layer).register_forward_hook(lambda _m, _i, out: kept.append(out))
        with torch.inference_mode():
            untouched(images)
        want = kept[0][:, 1:].transpose(1, 2).flatten(1)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="patches of 16 x 16 do not divide; pass multiples, such"):
        network.family.set_size(network.module, (40, 64))
    # Sizes before leave no trace, since positions are resampled from the trained ones.
    network.family.set_size(network.module, (128, 128))
    network.family.set_size(network.module, size)
    again = Backbone(network, raw, device="cpu")
    np.testing.assert_allclose(again(images.numpy()), got, rtol=1e-5, atol=1e-6)


def test_near_names_are_listed():
    with pytest.raises(ValueError, match=r"did you mean resnext50_32x4d"):
        load_network("resnext5032x4d", None)
