import sys
from functools import partialmethod

import numpy as np
import pytest
import torch
import tqdm
from fits import scripted
from safetensors.torch import save_file

from pydfm.features.backbones import load_network, torchvision
from pydfm.features.extractor import Extractor, FeatureSpec, feature_batches
from pydfm.features.grid import Grid
from pydfm.features.inputs.sources import open_source
from pydfm.features.transforms import Preprocessing

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
    assert [i for batch, _ in batches for i in batch.indices] == list(range(len(images)))
    assert all(len(batch.pixels) == len(rows) <= batch_size for batch, rows in batches)
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
        sha256=load_network(tiny_network).sha256,
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

    monkeypatch.setattr(torchvision, "_download", download)
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
    scripted(tiny_network.eval()).save(path)
    spec = build(path).spec
    assert spec.backbone == str(path)
    moved = path.rename(tmp_path / "moved.pt")
    assert Extractor.rebuild(spec, backbone=moved, device="cpu").spec == spec
    with pytest.raises(ValueError, match="the path of an existing TorchScript file"):
        Extractor.rebuild(spec)
    tiny_network.head.bias.data += 1
    scripted(tiny_network).save(path)
    with pytest.raises(ValueError, match="are not the ones the model was fitted with"):
        Extractor.rebuild(spec)


def test_the_files_that_a_model_needs_are_known(tiny_network, file):
    spec = build(tiny_network, file).spec
    assert spec.needs_module
    assert spec.needed_files() == {"weights": str(file)}
    assert spec.needed_files(tiny_network, "other.pth") == {}
    spec = build("resnet18", layers="layer1").spec
    assert not spec.needs_module
    assert spec.needed_files() == {}


def test_the_device_is_named(tiny_network):
    assert build(tiny_network).device == "cpu"


# Batch by batch

OPTIONS = {"batch_size": 5, "n_threads": 2, "task": "fit", "verbose": False}


def test_rows_come_as_they_are():
    rows = [np.ones((3, 4)), np.zeros((2, 4), dtype=np.float32)]
    got = list(feature_batches(open_source(iter(rows), "raise"), None, **OPTIONS))
    assert [places for places, _, _ in got] == [slice(0, 3), slice(3, 5)]
    assert [features.dtype for _, features, _ in got] == [np.float64, np.float32]
    assert np.array_equal(np.vstack([features for _, features, _ in got]), np.vstack(rows))
    assert all(pixels is None for _, _, pixels in got)
    with pytest.raises(ValueError, match="X has 4 features, but DFM is expecting 5"):
        list(feature_batches(open_source(rows[0], "raise"), None, **OPTIONS, n_features=5))


def test_images_come_with_their_features_and_pixels(tiny_network, textures):
    extractor = build(tiny_network, layers="block")
    got = list(feature_batches(open_source(textures, "raise"), extractor, **OPTIONS))
    assert [places for places, _, _ in got] == [[*range(5)], [*range(5, 10)], [10, 11]]
    assert np.array_equal(np.vstack([pixels for _, _, pixels in got]), textures)
    want = features(extractor, textures)
    assert np.array_equal(np.vstack([rows for _, rows, _ in got]), want)


def test_a_gpu_has_the_next_batches_while_one_is_used(tiny_network, textures):
    extractor = build(tiny_network, layers="block")
    want = features(extractor, textures, batch_size=3)
    begun = []

    class OnGpu:
        """The same network, which only says that it runs on a GPU."""

        device = torch.device("cuda")

        def start(self, pixels):
            begun.append(len(pixels))
            return extractor._backbone.start(pixels)

    batches = Extractor(OnGpu(), extractor.spec).batches(open_source(textures, "raise"), 3, 2)
    rows = [next(batches)[1]]
    assert len(begun) == 3
    rows += [found for _, found in batches]
    assert begun == [3, 3, 3, 3]
    assert np.array_equal(np.vstack(rows), want)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("batch_size", [1, 5, 12])
def test_features_of_a_gpu_are_those_of_the_cpu(tiny_network, textures, batch_size):
    want = features(build(tiny_network, layers="block"), textures)
    on_gpu = build(tiny_network, layers="block", device="cuda")
    for _ in range(3):  # what one batch leaves in memory that is used again must not show
        got = features(on_gpu, textures, batch_size)
        assert np.abs(got - want).max() < 1e-3 * np.abs(want).max()


def test_a_checkpoint_gives_what_was_computed_before(tiny_network, picture_folder, tmp_path):
    extractor = build(tiny_network, layers="block")

    def read():
        source = open_source(picture_folder, "raise")
        folder = tmp_path / "c"
        return list(feature_batches(source, extractor, **OPTIONS, checkpoint=folder))

    first, again = read(), read()
    assert all(pixels is not None for _, _, pixels in first)
    assert all(pixels is None for _, _, pixels in again)
    assert [places for places, _, _ in first] == [places for places, _, _ in again]
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("verbose", [True, False])
def test_a_bar_counts_images_at_a_terminal(tiny_network, textures, monkeypatch, capfd, verbose):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(tqdm.tqdm, "__init__", partialmethod(tqdm.tqdm.__init__, mininterval=0))
    plain = tqdm.tqdm
    monkeypatch.setattr(tqdm, "tqdm", lambda **options: plain(**{**options, "delay": 0}))
    extractor = build(tiny_network)
    list(
        feature_batches(
            open_source(textures, "raise"), extractor, **{**OPTIONS, "verbose": verbose}
        )
    )
    err = capfd.readouterr().err
    assert ("fit: 100%" in err and "12/12" in err) == verbose


@pytest.mark.parametrize(("name", "value"), [("batch_size", 0), ("n_threads", 0)])
def test_wrong_options_are_told(tiny_network, textures, name, value):
    source = open_source(textures, "raise")
    with pytest.raises(ValueError, match=f"{name} is 0"):
        next(feature_batches(source, build(tiny_network), **{**OPTIONS, name: value}))
