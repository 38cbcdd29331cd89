"""Real defects, real weights, through the command line."""

import os
import re
from pathlib import Path

import pytest

import pydfm
from pydfm.cli import main as cli
from pydfm.datasets.category import load_category
from pydfm.datasets.measure import measure_category

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
