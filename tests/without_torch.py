"""Fit, score, save and load features where torch is not installed, as on macOS on x86-64."""

import sys
import tempfile
from importlib.abc import MetaPathFinder
from pathlib import Path

import numpy as np


class NoTorch(MetaPathFinder):
    """Lets no import of torch pass, where it is installed after all."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision"):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return


def main() -> None:
    sys.meta_path.insert(0, NoTorch())
    import pydfm

    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 8)) @ rng.normal(size=(8, 64)) + 0.1 * rng.normal(size=(300, 64))
    y = rng.normal(size=(5, 64))
    dfm = pydfm.DFM(8).fit(x)
    left = x - x.mean(axis=0)
    _, _, components = np.linalg.svd(left, full_matrices=False)
    v = y - x.mean(axis=0)
    expected = ((v - v @ components[:8].T @ components[:8]) ** 2).sum(axis=1)
    np.testing.assert_allclose(dfm.score(y), expected, rtol=1e-4)
    assert (dfm.p_value(y) < 0.01).all()
    assert (dfm.predict(y) == -1).all()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pydfm"
        dfm.save(path)
        assert (pydfm.load(path).score(y) == dfm.score(y)).all()
    print(f"{pydfm.__file__}: features are fitted, scored, saved and loaded without torch")


if __name__ == "__main__":
    main()
