"""Deep Feature Modeling: how far an image is from what a model knows.

>>> import pydfm
>>> dfm = pydfm.DFM()  # .fit("parts/good"), then .score("parts/incoming")

The names below are loaded when they are first used, so that the import itself costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydfm.estimator import DFM, load
    from pydfm.features.extractor import FeatureSpec
    from pydfm.features.inputs.images import ImageError
    from pydfm.features.inputs.sources import Skipped
    from pydfm.features.transforms import Preprocessing
    from pydfm.metrics import evaluate
    from pydfm.reports.batch import report
    from pydfm.runtime.config import show_config
    from pydfm.stats.subspace import Subspace

__all__ = [
    "DFM",
    "FeatureSpec",
    "ImageError",
    "Preprocessing",
    "Skipped",
    "Subspace",
    "__version__",
    "evaluate",
    "load",
    "report",
    "show_config",
]

__version__: str

_HOME = {
    "DFM": "estimator",
    "FeatureSpec": "features.extractor",
    "ImageError": "features.inputs.images",
    "Preprocessing": "features.transforms",
    "Skipped": "features.inputs.sources",
    "Subspace": "stats.subspace",
    "evaluate": "metrics",
    "load": "estimator",
    "report": "reports.batch",
    "show_config": "runtime.config",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        globals()[name] = version("pydfm")
        return globals()[name]
    if name not in _HOME:
        raise AttributeError(f"module 'pydfm' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"pydfm.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
