"""Tell how far an image is from what a model knows.

>>> import pydfm
>>> dfm = pydfm.DFM()  # .fit("parts/good"), then .score("parts/incoming")

The names below are loaded when they are first used, so that the import itself costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

from pydfm._version import __version__

if TYPE_CHECKING:
    from pydfm.config import show_config
    from pydfm.dfm import DFM
    from pydfm.evaluation import evaluate
    from pydfm.extraction import FeatureSpec
    from pydfm.images import ImageError, Skipped
    from pydfm.modelfile import load
    from pydfm.preprocessing import Preprocessing
    from pydfm.subspace import Subspace

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
    "show_config",
]

_HOME = {
    "DFM": "dfm",
    "FeatureSpec": "extraction",
    "ImageError": "images",
    "Preprocessing": "preprocessing",
    "Skipped": "images",
    "Subspace": "subspace",
    "evaluate": "evaluation",
    "load": "modelfile",
    "show_config": "config",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pydfm' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"pydfm.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
