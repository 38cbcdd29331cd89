import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pydfm import networks
from pydfm.extraction import Extractor, FeatureSpec
from pydfm.images import open_source
from pydfm.maps import Grid
from pydfm.preprocessing import Preprocessing

PARAMETERS = {
    "spatial": "flatten",
    "pool": None,
    "image_size": (40, 48),
    "mean": None,
    "std": None,
    "precision": "float32",
    "random_state": 0,
    "device": "cpu",
    "progress": False,
}


def build(backbone, weights=None, layers=None, **changes):
    return Extractor.build(backbone, weights, layers, **{**PARAMETERS, **changes})


def features(extractor, images, batch_size=5):
    """Features of all images in order."""
    batches = list(extractor.batches(open_source(images, "raise"), batch_size, 2))
    assert [i for indices, _ in batches for i in indices] == list(range(len(images)))
    assert all(len(indices) == len(rows) <= batch_size for indices, rows in batches)
    return np.concatenate([rows for _, rows in batches])


@pytest.fixture
def file(tiny_network, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(tiny_network.state_dict(), path)
    return path


def test_the_specification_holds_all_that_the_features_depend_on(tiny_network):
    extractor = build(tiny_network, layers=["block", "stem"], pool=2, mean=0.5, random_state=4)
    assert extractor.spec == FeatureSpec(
        backbone="module:Sequential",
        weights=None,
        layers=("block", "stem"),
        grids=(Grid(6, 10, 12), Grid(8, 10, 12)),
        spatial="flatten",
        pool=2,
        precision="float32",
        random_state=4,
        preprocessing=Preprocessing((40, 48), None, mean=(0.5, 0.5, 0.5)),
        sha256=networks.load_network(tiny_network).sha256,
    )


def test_the_specification_names_networks_and_files(file, tiny_network):
    assert build("resnet18", layers="layer1").spec.backbone == "resnet18"
    assert build(tiny_network, file).spec.weights == str(file)


def test_columns_stand_in_the_order_of_the_layers(tiny_network, textures):
    block, stem = (
        features(build(tiny_network, layers=name), textures) for name in ("block", "stem")
    )
    both = features(build(tiny_network, layers=("block", "stem")), textures)
    np.testing.assert_allclose(both, np.hstack([block, stem]), atol=1e-5)


def test_the_image_size_is_that_of_the_weights_where_none_is_given(tiny_network, textures):
    extractor = build(tiny_network, image_size=None)
    assert extractor.spec.preprocessing == Preprocessing()
    assert features(extractor, textures[:2]).shape == (2, 5)


def test_wrong_parameters_are_told_before_anything_is_downloaded(monkeypatch):
    def download(*_):
        raise AssertionError("a download was tried")

    monkeypatch.setattr(networks, "_download", download)
    for wrong in ({"image_size": 0}, {"mean": "grey"}, {"std": 0}, {"random_state": -1}):
        (name,) = wrong
        with pytest.raises(ValueError, match=f"{name} is "):
            build("resnet18", "imagenet", **wrong)


# Built again


def test_a_torchvision_network_is_built_again_from_its_specification(textures):
    extractor = build("resnet18", layers=("layer1", "layer2.0.conv1"), pool=4, random_state=9)
    again = Extractor.rebuild(extractor.spec, device="cpu")
    assert again.spec == extractor.spec
    assert np.array_equal(features(again, textures[:2]), features(extractor, textures[:2]))


def test_a_module_is_built_again_when_it_is_given(tiny_network, textures):
    extractor = build(tiny_network, layers="block")
    again = Extractor.rebuild(extractor.spec, backbone=tiny_network, device="cpu")
    assert np.array_equal(features(again, textures), features(extractor, textures))
    with pytest.raises(ValueError, match=r"a module of the class Sequential, .* pass it"):
        Extractor.rebuild(extractor.spec)


def test_weights_may_have_moved(tiny_network, file):
    spec = build(tiny_network, file).spec
    moved = file.rename(file.with_name("moved.safetensors"))
    assert Extractor.rebuild(spec, backbone=tiny_network, weights=moved, device="cpu").spec == spec
    with pytest.raises(
        ValueError, match=r"weights is '.*weights.safetensors', which cannot be read"
    ):
        Extractor.rebuild(spec, backbone=tiny_network)


def test_other_weights_than_those_of_the_specification_are_refused(tiny_network):
    spec = build(tiny_network).spec
    with torch.no_grad():
        tiny_network.head.weight[0, 0] += 1
    with pytest.raises(ValueError, match="are not the ones the model was fitted with") as caught:
        Extractor.rebuild(spec, backbone=tiny_network)
    assert spec.sha256[:12] in str(caught.value)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_torchscript_file_is_known_by_its_path_and_content(tiny_network, tmp_path):
    path = tmp_path / "network.pt"
    torch.jit.script(tiny_network.eval()).save(path)
    spec = build(path).spec
    assert spec.backbone == str(path)
    moved = path.rename(tmp_path / "moved.pt")
    assert Extractor.rebuild(spec, backbone=moved, device="cpu").spec == spec
    with pytest.raises(ValueError, match="the path of an existing TorchScript file"):
        Extractor.rebuild(spec)
    tiny_network.head.bias.data += 1
    torch.jit.script(tiny_network).save(path)
    with pytest.raises(ValueError, match="are not the ones the model was fitted with"):
        Extractor.rebuild(spec)
