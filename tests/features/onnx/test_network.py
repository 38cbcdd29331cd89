import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pydfm.features.backbones import load_network
from pydfm.features.network import tap_on_cpu
from pydfm.features.onnx import network as module
from pydfm.features.onnx.export import export
from pydfm.features.onnx.network import OnnxBackbone
from pydfm.features.transforms import Preprocessing

SIZE = Preprocessing(resize=(40, 48), crop=None)


@pytest.fixture
def graph(tiny_network):
    return export(tap_on_cpu(load_network(tiny_network, layers=("stem", "block")), SIZE))


def test_features_have_the_same_bits_with_any_threads(graph, textures):
    want = OnnxBackbone(graph, 1)(textures)
    for n_threads in (1, 2, 3, 7):
        assert np.array_equal(OnnxBackbone(graph, n_threads)(textures), want)


def test_features_do_not_depend_on_the_batch(graph, textures):
    backbone = OnnxBackbone(graph, 2)
    want = backbone(textures)
    for size in (1, 5):
        parts = [backbone(textures[i : i + size]) for i in range(0, len(textures), size)]
        np.testing.assert_allclose(np.concatenate(parts), want, rtol=1e-5, atol=1e-6)


def test_bytes_and_floats_in_any_order_give_the_same(graph, textures):
    backbone = OnnxBackbone(graph, 1)
    want = backbone(textures)
    floats = textures.astype(np.float32) / np.float32(255)
    assert np.array_equal(backbone(floats), want)
    for pixels in (textures, floats):
        turned = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        assert np.array_equal(backbone(turned), want)


def test_what_is_not_finite_is_said(graph, textures):
    backbone = OnnxBackbone(graph, 1)
    floats = textures.astype(np.float32) / 255
    assert backbone.start(floats)()[1]
    floats[3, 0, 0, 0] = np.nan
    features, finite = backbone.start(floats)()
    assert not finite
    assert np.isfinite(features).all(axis=1).tolist() == [i != 3 for i in range(12)]


def test_threads_may_share_it(graph, textures):
    backbone = OnnxBackbone(graph, 1)
    want = [backbone(textures[i : i + 3]) for i in range(9)]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda i: backbone(textures[i : i + 3]), range(9)))
    assert np.array_equal(got, want)


def test_it_runs_on_cpus(graph, monkeypatch):
    monkeypatch.setattr(module, "on_cpu", lambda device: device == "cpu")
    backbone, chosen = OnnxBackbone(graph, 1), OnnxBackbone(graph, 1, by_choice=True)
    assert (backbone.device, backbone.runtime, backbone.n_threads) == ("cpu", "onnx", 1)
    assert [backbone.runs_on(device) for device in ("cpu", "cuda", None)] == [True, False, False]
    assert [chosen.runs_on(device) for device in ("cpu", "cuda", None)] == [True, False, True]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_computes_the_same(run_python):
    code = """
import os, sys
import numpy as np
from pydfm.features.grid import Grid
from pydfm.features.backbones import load_network
from pydfm.features.network import tap_on_cpu
from pydfm.features.onnx.export import export
from pydfm.features.onnx.network import OnnxBackbone
from pydfm.features.transforms import Preprocessing

size = Preprocessing(resize=(64, 64), crop=None)
graph = export(tap_on_cpu(load_network("resnet18", None, ("layer2",)), size))
backbone = OnnxBackbone(graph, 2)
pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 64, 64), dtype=np.uint8)
want = backbone(pixels)
for used in (True, False):
    child = os.fork()
    if child == 0:  # it ends as any process does
        sys.exit(0 if not used or np.array_equal(backbone(pixels), want) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert np.array_equal(backbone(pixels), want)
"""
    run_python(code)
