from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier, BrokenBarrierError

import numpy as np
import pytest
import torch
from fits import scripted
from torch import nn

from pydfm.features.backbones import load_network
from pydfm.features.network import Backbone
from pydfm.features.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

SIZE = Preprocessing(resize=(40, 48), crop=None)


def build(network, layers=None, *, weights=None, preprocessing=SIZE, **options):
    loaded = load_network(network, weights, layers)
    return Backbone(loaded, preprocessing, device="cpu", **options)


def normalised(pixels):
    images = torch.from_numpy(pixels).float() / 255
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (IMAGENET_MEAN, IMAGENET_STD))
    return (images - mean) / std


@torch.no_grad()
def hooked(network, layers, pixels):
    """Outputs of `layers`, copied while the network runs eagerly."""
    found = {}
    handles = [
        network.get_submodule(layer).register_forward_hook(
            lambda _module, _inputs, output, layer=layer: found.update({layer: output.clone()})
        )
        for layer in layers
        if layer != "output"
    ]
    found["output"] = network.eval()(normalised(pixels))
    for handle in handles:
        handle.remove()
    return [found[layer] for layer in layers]


def assert_close(got, want):
    assert got.dtype == np.float32
    want = np.asarray(want)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


# Features


@pytest.mark.parametrize(
    "layers",
    [
        ("stem",),  # the next layer works in place
        ("relu",),
        ("block", "stem"),
        ("stem", "block.0", "block.2", "pool"),
        ("flat", "output", "relu"),
        ("output",),
    ],
)
def test_features_are_the_outputs_of_the_layers(tiny_network, textures, layers):
    backbone = build(tiny_network, layers)
    want = [output.flatten(1) for output in hooked(tiny_network, layers, textures)]
    assert tuple(grid.size for grid in backbone.grids) == tuple(x.shape[1] for x in want)
    assert_close(backbone(textures), torch.cat(want, dim=1))


@pytest.mark.parametrize("layers", [("layer1.0.conv1", "layer3"), ("avgpool",), ("output",)])
def test_features_are_those_of_a_torchvision_network(textures, layers):
    whole = load_network("resnet18", None, "output").module
    want = [output.flatten(1) for output in hooked(whole, layers, textures[:3])]
    assert_close(build("resnet18", layers)(textures[:3]), torch.cat(want, dim=1))


@pytest.mark.parametrize("pool", [1, 3, 20, (2, 5)])
def test_maps_are_pooled(tiny_network, textures, pool):
    backbone = build(tiny_network, ("block", "stem"), pool=pool)
    maps = hooked(tiny_network, ("block", "stem"), textures)
    kernels = pool if isinstance(pool, tuple) else (pool, pool)
    pooled = [nn.functional.avg_pool2d(x, k) for x, k in zip(maps, kernels, strict=True)]
    for grid, want, whole, k in zip(backbone.grids, pooled, maps, kernels, strict=True):
        assert (grid.channels, grid.height, grid.width) == tuple(want.shape[1:])
        height, width = whole.shape[2:]
        assert grid.reach == (height // k * k / height, width // k * k / width)
    assert_close(backbone(textures), torch.cat([x.flatten(1) for x in pooled], dim=1))


def test_maps_are_averaged(tiny_network, textures):
    backbone = build(tiny_network, ("block", "flat", "stem"), spatial="mean")
    want = [
        x.mean(dim=(2, 3)) if x.ndim == 4 else x
        for x in hooked(tiny_network, ("block", "flat", "stem"), textures)
    ]
    assert [(g.height, g.width, g.reach) for g in backbone.grids] == [(1, 1, (1.0, 1.0))] * 3
    assert_close(backbone(textures), torch.cat(want, dim=1))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"pool": (2,)}, "pool has 1 kernels for 2 layers; give one for each"),
        ({"pool": (2, 0)}, "pool is 0; it must be an integer of at least 1"),
        ({"pool": 2, "spatial": "mean"}, "pool is 2, and spatial is 'mean', which averages"),
        ({"pool": (1, 99)}, "pool is 99; layer 'stem' gives"),
    ],
)
def test_kernels_that_do_not_fit_are_told(tiny_network, options, says):
    with pytest.raises(ValueError, match=says):
        build(tiny_network, ("block", "stem"), **options)


def test_features_do_not_depend_on_the_batch(tiny_network, textures):
    backbone = build(tiny_network, ("stem", "block"))
    want = backbone(textures)
    for size in (1, 2, 5):
        parts = [backbone(textures[i : i + size]) for i in range(0, len(textures), size)]
        assert_close(np.concatenate(parts), want)


def test_a_batch_has_the_same_bits_when_it_comes_again(tiny_network, textures):
    backbone = build(tiny_network, "stem")
    want = backbone(textures)
    for _ in range(3):
        assert np.array_equal(backbone(textures), want)


def test_bytes_and_floats_give_the_same_features(tiny_network, textures):
    backbone = build(tiny_network, "block")
    floats = textures.astype(np.float32) / 255
    before = floats.copy()
    assert_close(backbone(floats), backbone(textures))
    assert np.array_equal(floats, before)


def test_the_normalisation_is_that_of_the_preprocessing(tiny_network, textures):
    changed = SIZE.with_changes(None, (0.1, 0.2, 0.3), (2, 3, 4))
    mean, std = np.reshape((0.1, 0.2, 0.3), (3, 1, 1)), np.reshape((2, 3, 4), (3, 1, 1))
    images = torch.from_numpy((textures / 255 - mean) / std).float()
    want = tiny_network.eval()(images).detach()
    assert_close(build(tiny_network, preprocessing=changed)(textures), want)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_lower_precision_comes_close(tiny_network, textures, precision):
    want = build(tiny_network, "block")(textures)
    got = build(tiny_network, "block", precision=precision)(textures)
    assert got.dtype == np.float32
    assert not np.array_equal(got, want)
    assert np.abs(got - want).max() < 0.02 * np.abs(want).max()


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_script_is_taken_from_a_file_or_as_a_module(tiny_network, textures, tmp_path):
    script = scripted(tiny_network.eval())
    script.save(tmp_path / "network.pt")
    want = build(tiny_network)(textures)
    assert_close(build(script)(textures), want)
    assert_close(build(tmp_path / "network.pt")(textures), want)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_gpu_gives_what_the_cpu_does(tiny_network, textures, precision):
    want = build(tiny_network, "block")(textures)
    network = load_network(tiny_network, layers="block")
    got = Backbone(network, SIZE, device="cuda", precision=precision)(textures)
    assert np.abs(got - want).max() < 0.02 * np.abs(want).max()


# Networks that a trace does not hold


class Brightness(nn.Module):
    """Takes another way for dark images than for bright ones."""

    def forward(self, images):
        flat = images.flatten(1)
        return flat[:, :4] if images.mean() > 0 else 100 * flat[:, 4:8]


class Counting(nn.Module):
    """Takes the size of the batch for a constant."""

    def forward(self, images):
        return images.flatten(1)[:, :4] + torch.ones(len(images), 4)


MEETING = Barrier(2)


class Meeting(nn.Module):
    """Waits, between its layers, for another call; after a while it goes on alone."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 2, 1)

    def forward(self, images):
        x = self.first(images)
        if images.mean().item() < 1e9:  # cannot be traced
            with suppress(BrokenBarrierError):
                MEETING.wait(0.2)
        return self.second(x)


@pytest.mark.filterwarnings("ignore:the backbone could not be traced")
def test_a_network_that_cannot_be_traced_runs_once_at_a_time():
    backbone = build(Meeting(), ("first", "second"))
    pixels = np.random.default_rng(0).random((2, 1, 3, 40, 48), dtype=np.float32)
    want = [backbone(part) for part in pixels]
    MEETING.reset()
    with ThreadPoolExecutor(2) as pool:
        got = list(pool.map(backbone, pixels))
    assert np.array_equal(got, want)


@pytest.mark.parametrize("network", [Brightness(), Counting()])
@pytest.mark.parametrize("value", [0, 255])
def test_a_network_that_cannot_be_traced_warns_and_runs_as_it_is(network, value):
    pixels = np.full((3, 3, 40, 48), value, dtype=np.uint8)
    with pytest.warns(UserWarning, match=r"could not be traced with TorchScript \(.+\); it runs"):
        backbone = build(network)
    for n in (1, 3):
        assert_close(backbone(pixels[:n]), network(normalised(pixels[:n])))


# What is told


class TwoOutputs(nn.Module):
    def forward(self, images):
        return images, images


def test_a_layer_must_give_one_tensor(tiny_network):
    network = nn.Sequential(tiny_network, nn.Identity())
    network[0] = TwoOutputs()
    with pytest.raises(ValueError, match=r"layer '0' returns tuple; features .* a tensor"):
        build(network, "0")
    with pytest.raises(ValueError, match=r"layer 'output' returns tuple"):
        build(network)


def test_a_layer_that_does_not_run_is_named(tiny_network):
    network = nn.Sequential(tiny_network)
    network.register_module("spare", nn.ReLU())
    network.forward = tiny_network.forward
    with pytest.raises(ValueError, match=r"layer 'spare' does not run"):
        build(network, "spare")


def test_a_layer_without_a_map_cannot_be_pooled(tiny_network):
    with pytest.raises(ValueError, match=r"pool is 2; layer 'head' gives 5 per image"):
        build(tiny_network, "head", pool=2)


def test_a_pool_larger_than_the_map_is_told(tiny_network):
    with pytest.raises(ValueError, match=r"pool is 21; layer 'stem' gives 8 x 20 x 24 per image"):
        build(tiny_network, ("block", "stem")[::-1], pool=21)


@pytest.mark.parametrize("pool", [0, -1, 1.5])
def test_a_pool_is_a_positive_integer(tiny_network, pool):
    with pytest.raises(ValueError, match=r"pool is .* integer of at least 1"):
        build(tiny_network, "stem", pool=pool)


@pytest.mark.parametrize("precision", ["float64", "half", None])
def test_an_unknown_precision_lists_those_there_are(tiny_network, precision):
    with pytest.raises(ValueError, match=r"precision is .*'float32', 'bfloat16', 'float16'"):
        build(tiny_network, precision=precision)


@pytest.mark.parametrize("device", ["cuda:99", "gpu", 7.5, "meta:x", "mps:9"])
def test_a_device_that_is_not_there_is_told_in_one_sentence(tiny_network, device):
    network = load_network(tiny_network)
    with pytest.raises(ValueError, match=r"^device is .*; pass 'cpu', or None") as caught:
        Backbone(network, SIZE, device=device)
    assert "\n" not in str(caught.value)


def test_the_device_is_chosen_where_none_is_named(tiny_network):
    want = "cuda" if torch.cuda.is_available() else "cpu"
    assert Backbone(load_network(tiny_network), SIZE).device.type == want


class ChannelsLast(nn.Module):
    """A network whose layers give (B, H, W, C), as transformers with windows do."""

    def __init__(self, stem):
        super().__init__()
        self.stem = stem

    def forward(self, batch):
        return self.stem(batch).permute(0, 2, 3, 1)


@pytest.mark.parametrize("options", [{}, {"pool": 2}, {"spatial": "mean"}])
def test_maps_with_their_channels_last_are_recognised(textures, options):
    stem = nn.Conv2d(3, 20, 4, stride=4)
    first = Backbone(load_network(stem), SIZE, device="cpu", **options)
    last = Backbone(load_network(ChannelsLast(stem)), SIZE, device="cpu", **options)
    assert first.grids == last.grids
    np.testing.assert_allclose(last(textures), first(textures), rtol=1e-4, atol=1e-5)


def test_the_layout_of_maps_may_be_given():
    network = load_network(ChannelsLast(nn.Conv2d(3, 20, 4, stride=4)))
    (grid,) = Backbone(network, SIZE, device="cpu", layout="channels_first").grids
    assert (grid.channels, grid.height, grid.width) == (10, 12, 20)


def test_maps_without_the_aspect_ratio_of_the_image_are_refused():
    network = load_network(
        nn.Sequential(nn.Conv2d(3, 20, 4, stride=4), nn.AdaptiveAvgPool2d((2, 9)))
    )
    with pytest.raises(ValueError, match=r"^layers has 'output', which gives 20 x 2 x 9 per image"):
        Backbone(network, SIZE, device="cpu")


class Ordered(nn.Module):
    """As many channels as rows and columns, first or last."""

    def __init__(self, last, whole=False):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, stride=4)
        self.last, self.whole = last, whole

    def forward(self, images):
        if self.whole:
            assert int(images.shape[3]) == 64
        maps = self.stem(images)
        return maps.permute(0, 2, 3, 1) if self.last else maps


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("side", [64, 60, 56])
def test_an_order_that_the_aspect_ratio_leaves_open_is_told_by_another(last, side):
    torch.manual_seed(0)
    network = Ordered(last)
    size = Preprocessing(resize=(side, side), crop=None)
    backbone = build(network, preprocessing=size)
    (grid,) = backbone.grids
    assert (grid.channels, grid.height, grid.width) == (16, side // 4, side // 4)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, side, side), dtype=np.uint8)
    with torch.no_grad():
        want = network.stem(normalised(pixels)).flatten(1)
    assert_close(backbone(pixels), want)


@pytest.mark.filterwarnings("ignore:the backbone could not be traced")
def test_an_order_that_nothing_tells_is_said():
    size = Preprocessing(resize=(64, 64), crop=None)
    says = r"layers has 'output', which gives 16 x 16 x 16 per image: .* taken to come first; pass"
    with pytest.warns(UserWarning, match=says):
        build(Ordered(last=True, whole=True), preprocessing=size)
    build(Ordered(last=True, whole=True), preprocessing=size, layout="channels_last")


def test_the_channels_of_the_fit_tell_the_order():
    size = Preprocessing(resize=(64, 64), crop=None)
    for last in (False, True):
        network = load_network(Ordered(last).requires_grad_(False))
        network.module.stem = nn.Conv2d(3, 14, 4, stride=4)
        wanted = Backbone(network, size, device="cpu").grids
        again = Backbone(network, size, device="cpu", known=wanted)
        assert again.grids == wanted
        assert wanted[0].channels == 14


def test_rows_that_are_no_images_are_refused():
    class Windows(nn.Module):
        def forward(self, images):
            return images.unfold(3, 8, 8).permute(0, 3, 1, 2, 4).flatten(0, 1)

    with pytest.raises(ValueError, match="layer 'output' gives 12 rows for 2 images; features can"):
        build(Windows())
