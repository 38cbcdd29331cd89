"""The compiled core: the best of its builds that this processor can run, chosen at import.

The builds come from the same sources and have the same functions (``_core.pyi`` declares them).
The environment variable ``PYDFM_INSTRUCTION_SET`` (baseline, v3 or v4) overrides the choice.
"""

import importlib
import os
from types import ModuleType


def _load() -> ModuleType:
    try:
        baseline = importlib.import_module("pydfm._core_baseline")
    except ImportError as error:
        raise ImportError(
            f"the compiled core of pydfm cannot be loaded ({error}); install it with "
            "`pip install -c constraints.txt .` and start Python outside of the source folder"
        ) from error
    supported: list[str] = baseline.supported_instruction_sets()
    wanted = os.environ.get("PYDFM_INSTRUCTION_SET") or supported[-1]
    if wanted not in supported:
        raise ImportError(
            f"PYDFM_INSTRUCTION_SET is '{wanted}'; this processor can run {', '.join(supported)}"
        )
    return baseline if wanted == "baseline" else importlib.import_module(f"pydfm._core_{wanted}")


_module = _load()
globals().update({name: value for name, value in vars(_module).items() if name[0] != "_"})
