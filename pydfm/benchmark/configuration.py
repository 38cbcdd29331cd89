"""Configurations: parameters of a `DFM` under a name."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydfm.estimator import DFM
from pydfm.parameters import PARAMETERS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Configuration:
    """Parameters of a `DFM` under a name.

    Attributes
    ----------
    name : str
    parameters : dict
        Those that differ from the defaults.
    """

    name: str
    parameters: dict[str, Any]

    def __post_init__(self) -> None:
        for key in self.parameters:
            if key not in PARAMETERS:
                raise ValueError(
                    f"configuration '{self.name}' has '{key}', which is no parameter of DFM; those "
                    f"are {', '.join(sorted(PARAMETERS))}"
                )

    def build(self, **changes: Any) -> DFM:
        """Return a `DFM` with these parameters and the `changes` that are not None."""
        changes = {key: value for key, value in changes.items() if value is not None}
        return DFM(**{**self.parameters, **changes})

    def settings(self) -> str:
        """Return the parameters that a result depends on, as one line of JSON."""
        parameters = {key: value for key, value in self.parameters.items() if _changes_results(key)}
        return json.dumps(parameters, sort_keys=True, default=os.fspath)

    @property
    def files(self) -> list[str]:
        """Paths of the files, if there are any, that the network is read from."""
        named = (self.parameters.get(key) for key in ("backbone", "weights"))
        return [
            os.fspath(path)
            for path in named
            if isinstance(path, str | os.PathLike) and Path(path).is_file()
        ]


def read_configurations(path: "str | os.PathLike[str]") -> list[Configuration]:
    """Read a TOML file with a table of `DFM` parameters for each configuration.

    TOML has no null: ``weights = "none"`` stands for random weights, ``n_components = "all"`` for
    all components.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not TOML, has no tables, or names a parameter that `DFM` does not have.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"there is no file '{file}'")
    try:
        content = parse_toml(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"'{file}' is not TOML: {error}") from error
    if not content or not all(isinstance(table, dict) for table in content.values()):
        raise ValueError(
            f"'{file}' must have a table of DFM parameters for each configuration, such as "
            "[small] with backbone = 'resnet18' below it"
        )
    return [
        Configuration(name, {key: _from_toml(key, value) for key, value in table.items()})
        for name, table in content.items()
    ]


def with_weights(
    configurations: Sequence[Configuration], weights: str | None
) -> list[Configuration]:
    """Return the `configurations` with other `weights`: a name, a path, or None or "none"."""
    chosen = _from_toml("weights", weights)
    return [Configuration(c.name, {**c.parameters, "weights": chosen}) for c in configurations]


def parse_toml(text: str) -> dict[str, Any]:
    """Return the content of a TOML file."""
    return tomllib.loads(text)


def _changes_results(name: str) -> bool:
    # on_error decides which images count.
    return name == "on_error" or PARAMETERS[name].role != "runtime"


def _from_toml(key: str, value: Any) -> Any:
    if (key, value) in (("weights", "none"), ("n_components", "all")):
        return None
    return tuple(value) if isinstance(value, list) else value
