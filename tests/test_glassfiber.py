"""Real defects, real weights, through the command line."""

import os
import re
from pathlib import Path

import pytest

import pydfm
from pydfm.cli import main as cli
from pydfm.datasets.category import load_category
from pydfm.datasets.measure import measure_category
from pydfm.io.onnx.proof import prove

DATA = Path(os.environ.get("PYDFM_TEST_DATA", "."))
WEIGHTS = DATA / "resnet18_imagenet_to_layer3.safetensors"

pytestmark = pytest.mark.skipif(
    "PYDFM_TEST_DATA" not in os.environ, reason="PYDFM_TEST_DATA names no folder"
)


def test_defects_of_glass_fibre_are_found(tmp_path, capsys):
    model = tmp_path / "model.pydfm"
    options = {"--weights": WEIGHTS, "--layer": "layer3", "--pool": 2, "--image-size": 256}
    flat = [str(part) for option in options.items() for part in option]
    fit = ["fit", str(DATA / "glassfiber" / "train" / "good"), "-o", str(model), *flat]
    assert cli.main(fit) == 0, capsys.readouterr().err
    assert re.search(r": 90 images, \d+ of 16384 components; ", capsys.readouterr().out)

    assert cli.main(["eval", str(model), str(DATA / "glassfiber")]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("category     glassfiber (20 defective, 18 good)\n")
    auroc = float(re.search(r"^image AUROC  ([\d.]+)$", out, re.MULTILINE).group(1))
    assert 0.90 <= auroc <= 1, auroc


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("glassfiber", {"auroc": 0.978}),
        ("cookie", {"auroc": 0.96, "pixel_auroc": 0.92, "aupro": 0.74}),
    ],
)
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_the_default_finds_and_shows_defects(name, targets):
    category = load_category(DATA / name)
    dfm = pydfm.DFM(weights=WEIGHTS)  # the default finds defects
    found = measure_category(dfm.fit(category.train), category)
    assert dfm.image_score_ == "calibrated"
    values = {**found.image, **found.pixel}
    assert all(target <= values[of] <= 1 for of, target in targets.items()), values


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_network_in_int8_finds_what_it_found_in_float32(tmp_path):
    pytest.importorskip("onnx")
    category = load_category(DATA / "glassfiber")
    fitted, new = category.train[:60], category.train[60:]
    dfm = pydfm.DFM(weights=WEIGHTS, alpha=0.1).fit(fitted)
    held = dfm.to_onnx(tmp_path / "int8.onnx", int8=fitted)
    proof = prove(held, tmp_path / "int8.onnx", new)
    assert proof.holds
    assert proof.anomalous[0] <= 9  # of 30; more with a probability of 0.4 %
    found = measure_category(held, category).image["auroc"]
    assert found >= measure_category(dfm, category).image["auroc"] - 0.02
