import numpy as np
import pytest
import torch
from torch import nn

from pydfm.features.backbones import load_network
from pydfm.features.network import Backbone, tap_on_cpu
from pydfm.features.onnx import export as module
from pydfm.features.onnx.export import TOLERANCE, ExportError, export
from pydfm.features.onnx.network import OnnxBackbone
from pydfm.features.transforms import Preprocessing

SIZE = Preprocessing(resize=(40, 48), crop=None)


def tapped(network, layers=None, size=SIZE, **options):
    return tap_on_cpu(load_network(network, None, layers), size, **options)


@pytest.mark.parametrize(
    ("layers", "options"),
    [
        (("stem",), {}),  # the next layer works in place
        (("block", "stem"), {"pool": (2, 5)}),
        (("block", "flat", "stem"), {"spatial": "mean"}),
        (("flat", "output", "relu"), {}),
        (("stem", "block.0+block.2"), {"spatial": "patch"}),
    ],
)
def test_features_are_those_of_torch(tiny_network, textures, layers, options):
    graph = export(tapped(tiny_network, layers, **options))
    want = Backbone(load_network(tiny_network, None, layers), SIZE, device="cpu", **options)
    assert graph.grids == want.grids
    backbone = OnnxBackbone(graph, 2)
    for n in (1, 2, 12):
        got = backbone(textures[:n])
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want(textures[:n]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("backbone", "layers", "side"),
    [
        ("resnet18", ("layer2", "layer3"), 64),
        ("efficientnet_lite0", ("stages.2", "stages.4"), 64),
        ("mobilenet_v3_small", ("features.3", "features.8"), 64),
        ("convnext_tiny", ("features.3", "features.5"), 64),
        ("vit_b_16", ("encoder.layers.encoder_layer_1",), 64),
        ("timm:vit_tiny_patch16_224", ("6+7", "8"), 64),
    ],
)
def test_the_families_can_be_exported(backbone, layers, side):
    if backbone.startswith("timm:"):
        pytest.importorskip("timm")
    size = Preprocessing(resize=(side, side), crop=None)
    if backbone == "efficientnet_lite0":
        layers = load_network(backbone, None).family.map_layers(backbone)
    graph = export(tapped(backbone, layers, size, spatial="mean"))
    assert OnnxBackbone(graph, 1)(np.zeros((2, 3, side, side), np.uint8)).shape[0] == 2


class Brightness(nn.Module):
    """Takes another way for dark images than for bright ones."""

    def forward(self, images):
        flat = images.flatten(1)
        return flat[:, :4] if images.mean() > 0 else 100 * flat[:, 4:8]


class Counting(nn.Module):
    """Takes the size of the batch for a constant."""

    def forward(self, images):
        return images.flatten(1)[:, :4] + torch.ones(2, 4)[: len(images.tolist())]


class Unknown(nn.Module):
    """Has an operation that ONNX lacks."""

    def forward(self, images):
        return torch.linalg.eigvalsh(images[:, :, :3, :3].mean(1)).flatten(1)


class Failing(nn.Module):
    def forward(self, images):
        if torch.jit.is_tracing():
            raise ZeroDivisionError
        return images.flatten(1)[:, :4]


@pytest.mark.parametrize(
    ("network", "says"),
    [
        (Brightness(), "Converting a tensor to a Python boolean"),
        (Unknown(), "linalg"),
        (Failing(), "ZeroDivisionError"),
    ],
)
def test_what_cannot_be_exported_is_told_in_a_few_words(network, says, capfd):
    with pytest.raises(ExportError, match=says) as caught:
        export(tapped(network))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_features_that_differ_are_told(tiny_network, monkeypatch):
    open_session = module.open_session

    class Off:
        def __init__(self, graph, n_threads):
            self.actual = open_session(graph, n_threads)

        def run(self, names, inputs):
            (found,) = self.actual.run(names, inputs)
            found[0, 3] += self.off * np.abs(found).max()
            return [found]

    monkeypatch.setattr(module, "open_session", Off)
    Off.off = 2 * TOLERANCE
    with pytest.raises(ExportError, match=r"its features differ from torch's by .*, of at most"):
        export(tapped(tiny_network, "block"))
    Off.off = float("nan")
    with pytest.raises(ExportError, match="its features differ from torch's by nan"):
        export(tapped(tiny_network, "block"))
    Off.off = TOLERANCE / 10
    export(tapped(tiny_network, "block"))


def test_a_graph_for_one_batch_size_only_is_told(monkeypatch, tiny_network):
    class Fixed:
        def __init__(self, graph, n_threads):
            pass

        def run(self, names, inputs):
            return [np.zeros((2, 5), np.float32)]

    monkeypatch.setattr(module, "open_session", Fixed)
    with pytest.raises(ExportError, match=r"its features have the shape \(2, 5\) in onnxruntime"):
        export(tapped(tiny_network))


def test_a_session_that_cannot_be_opened_is_told(monkeypatch, tiny_network):
    def broken(graph, n_threads):
        raise RuntimeError("no such operation.\nmore")

    monkeypatch.setattr(module, "open_session", broken)
    with pytest.raises(ExportError, match=r"^no such operation$"):
        export(tapped(tiny_network))


def test_padding_is_joined_with_convolutions(tmp_path):
    """Else onnxruntime would reorder the maps before and after each, a quarter of its time."""
    import onnxruntime

    size = Preprocessing(resize=(64, 64), crop=None)
    graph = export(tapped("efficientnet_lite0", ("stage5",), size))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(graph.data, options, providers=["CPUExecutionProvider"])
    pad = b'"\x03Pad'  # the type of a node, as the file has it
    assert pad in graph.data
    assert pad not in (tmp_path / "optimized.onnx").read_bytes()
