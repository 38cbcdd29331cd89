"""Exports of real networks, with random weights, give the answers of their models."""

import io
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

import pydfm
from pydfm.io.onnx.proof import prove
from pydfm.io.onnx.session import OnnxModel

pytest.importorskip("onnx")

RESNET, LITE, B0 = "resnet18", "efficientnet_lite0", "efficientnet_b0"
VIT = "timm:vit_tiny_patch16_224"
PLAIN = {"image_score": "sum", "image_size": 64}
# Every network, score type and spatial form, one and two layers, with and without classes: but few.
CASES = {
    "resnet, standardised maps": (RESNET, {"pool": 2, "image_size": 64}, False),
    "resnet, mean, cropped": (RESNET, {"preset": "paper", "score_type": "mahalanobis"}, True),
    "resnet, patch, two layers": (
        RESNET,
        {"layers": ("layer2", "layer3"), "spatial": "patch", "score_type": "nll", "image_size": 64},
        True,
    ),
    "lite0, two layers": (LITE, {"pool": 2, "score_type": "ppca", **PLAIN}, True),
    "b0, relative": (
        B0,
        {"layers": "features.5", "score_type": "relative_mahalanobis", **PLAIN},
        True,
    ),
    "vit, two layers": (VIT, {"layers": ("6+7", "8"), "image_size": (48, 80)}, True),
    "vit, patch, folds": (
        VIT,
        {"layers": "4", "spatial": "patch", "image_size": 64, "calibration": "kfold"},
        False,
    ),
}


def fit(backbone, parameters, images, labels=None):
    given = {"weights": None, "device": "cpu", "alpha": 0.2, "runtime": "torch", "random_state": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of few images, and random weights
        return pydfm.DFM(3, backbone=backbone, **given, **parameters).fit(images, labels=labels)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("backbone", "parameters", "classes"), CASES.values(), ids=CASES)
def test_an_export_gives_the_answers_of_its_model(backbone, parameters, classes, images, tmp_path):
    """Images of odd sizes, grey and RGBA, one by one; and eight of one size at once."""
    if backbone == VIT:
        pytest.importorskip("timm")
    labels = [str(i % 2) for i in range(10)] if classes else None
    dfm = fit(backbone, parameters, images[:10], labels)
    dfm.to_onnx(tmp_path / "model.onnx")
    proof = prove(dfm, tmp_path / "model.onnx", images)
    assert proof.holds
    assert proof.changed == ()
    assert proof.map_share is None or proof.map_share < 1e-3
    # New ones: what rounding does to a score that is its own held-out score is told by its rank.
    batch = np.stack([np.asarray(Image.open(images[11]).convert("RGB"))] * 8)
    batch[1:] //= np.arange(1, 8, dtype=np.uint8)[:, None, None, None]
    found = OnnxModel(tmp_path / "model.onnx", 1).run(batch)
    each = [Image.fromarray(one) for one in batch]
    np.testing.assert_allclose(found["score"], dfm.score(each), rtol=1e-3)
    np.testing.assert_allclose(found["p_value"], dfm.p_value(each), rtol=1e-6)
    assert np.array_equal(found["verdict"], dfm.predict(each))
    if "map" in found:
        want = dfm.score_map(each)
        np.testing.assert_allclose(found["map"], want, rtol=1e-3, atol=1e-3 * want.std())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_to_torch_gives_what_torch_export_takes(images):
    """With batches and images of any size, from one of each; saved and loaded, too."""
    dfm = fit(RESNET, {"layers": "layer2", "image_size": 48, "calibration": "kfold"}, images[:10])
    module = dfm.to_torch()
    alpha = torch.tensor(0.2, dtype=torch.float64)
    n, height, width = (torch.export.Dim(name, min=1) for name in ("n", "height", "width"))
    program = torch.export.export(
        module,
        (torch.zeros((2, 71, 83, 3), dtype=torch.uint8), alpha),
        dynamic_shapes=({0: n, 1: height, 2: width}, None),
        strict=False,
    )
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    rng = np.random.default_rng(0)
    for shape in ((1, 90, 64, 3), (8, 41, 57, 3), (2, 64, 64, 3), (3, 200, 70, 3)):
        batch = torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8))
        with torch.no_grad():
            for got, want in zip(loaded(batch, alpha), module(batch, alpha), strict=True):
                np.testing.assert_allclose(got.numpy(), want.numpy(), rtol=1e-4)
