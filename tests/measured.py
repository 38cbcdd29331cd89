"""What the tests of measurements share: a folder of categories, configurations, data sets."""

import numpy as np
import pytest
from PIL import Image

from pydfm import DFM
from pydfm.benchmark.outliers import DataSet

FAST = {"weights": None, "layers": ("layer1",), "pool": 4, "image_size": 32}

TOML = """
[small]
weights = "none"
layers = ["layer1"]
pool = 4
image_size = 32
n_components = "all"

[few]
weights = "none"
layers = ["layer1"]
pool = 4
image_size = 32
n_components = 2
"""


TOML = """
[small]
weights = "none"
layers = ["layer1"]
pool = 4
image_size = 32
n_components = "all"

[few]
weights = "none"
layers = ["layer1"]
pool = 4
image_size = 32
n_components = 2
"""


def surface(rng, spotted=False):
    pixels = rng.integers(90, 130, (32, 32, 3), dtype=np.uint8)
    if spotted:
        pixels[8:16, 8:20] = 250
    return pixels


@pytest.fixture
def root(tmp_path):
    """Two categories, one of which has a mask missing, and one that cannot be measured."""
    rng = np.random.default_rng(0)
    for name in ("carpet", "more/own"):
        category = tmp_path / "data" / name
        for part, count in {"train/good": 6, "test/good": 4, "test/cut": 4}.items():
            (category / part).mkdir(parents=True)
            for i in range(count):
                image = Image.fromarray(surface(rng, spotted=part == "test/cut"))
                image.save(category / part / f"{i}.png")
        (category / "ground_truth" / "cut").mkdir(parents=True)
        mask = np.zeros((32, 32), dtype=np.uint8)
        mask[8:16, 8:20] = 255
        for i in range(3):
            Image.fromarray(mask).save(category / "ground_truth" / "cut" / f"{i}_mask.png")
    (tmp_path / "data" / "broken" / "test" / "good").mkdir(parents=True)
    return tmp_path / "data"


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(TOML)
    return path


@pytest.fixture
def overflow(monkeypatch):
    """The features of the third of each eight images overflow."""
    extract = DFM.extract

    def extract_too_much(self, X):
        features = extract(self, X)
        features[2::8, 0] = np.inf
        return features

    monkeypatch.setattr(DFM, "extract", extract_too_much)


@pytest.fixture
def fits(monkeypatch):
    """What was fitted, by the first of its images or the shape of its features."""
    seen = []
    fit = DFM.fit

    def spy(self, X, **options):
        seen.append(X)
        return fit(self, X, **options)

    monkeypatch.setattr(DFM, "fit", spy)
    return seen


@pytest.fixture
def sets():
    """Features in a subspace, others with noise all around, and labels."""
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(3, 10))
    inside = rng.normal(size=(60, 3)) @ basis
    return (
        DataSet("train", inside[:40], np.arange(40) % 2),
        DataSet("test", inside[40:], None),
        DataSet("noise", rng.normal(size=(15, 10)) * 3, None),
        DataSet("same", rng.normal(size=(15, 3)) @ basis, None),
    )
