"""What a model is fitted with: the parameters of `DFM` that count at the fit, resolved."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final

import numpy as np

from pydfm.features.grid import Grid
from pydfm.runtime.checks import parse_bytes
from pydfm.stats.sample import RowSample
from pydfm.stats.scatter import scatter_bytes
from pydfm.stats.scores import check_score_types

N_FOLDS: Final = 10
"""Folds of calibration="kfold". The models of fewer differ more, and p-values, which average over
them, come out more cautious."""
CALIBRATED_SHARES: Final = (0.01, 0.1)
PATCH_SHARE: Final = 0.1
"""Shares of the positions that the image scores "calibrated" and "top" average by default."""
N_PARTS: Final = 5
"""Parts of the units of a class, of which calibration="split" holds out one."""
# Rows that are kept to be scored by the fit of other folds, at most: bytes and rows (or images).
_HELD_BYTES: Final = 256 << 20
_HELD_ROWS: Final = 10_000
# Folded rows that are kept to be left out of their own fit, at most: in all, and of a class; and
# bytes of them, but for a tenth as many rows.
_SAMPLE: Final = 5_000
_CLASS_SAMPLE: Final = 1_000
_SAMPLE_BYTES: Final = 32 << 20
_FEW: Final = 500


@dataclass(frozen=True)
class Settings:
    """How a model is fitted; see the parameters of `DFM` for all but the last four.

    Attributes
    ----------
    held_out : {"loo", "kfold"} or None
        How fitted rows are held out, for the calibration or for what the fit itself needs.
    map_type : str or None
        Score type of the maps of held-out rows; None without maps.
    rule : str or None
        The `image_score`; None to choose by the number of rows.
    max_bytes : int or None
        Limit of memory of a layer.
    """

    n_components: float | int | None
    covariance: str
    density: str
    regularization: str | float | None
    combine: str
    spatial: str
    image_score: str | None
    top_share: tuple[float, ...] | None
    calibration: str | None
    max_memory: str | int | None
    random_state: int
    held_out: str | None
    map_type: str | None
    rule: str | None
    max_bytes: int | None

    @property
    def tied(self) -> bool:
        """Whether the classes share one scatter."""
        return self.covariance == "tied"

    @property
    def split(self) -> bool:
        """Whether a fifth of the units of a class is held out of the fit."""
        return self.calibration == "split"

    @property
    def how(self) -> str | None:
        """How held-out scores are made: "loo", "kfold", "split", or None without them."""
        return self.calibration if self.calibration in (None, "split") else self.held_out

    @property
    def n_folds(self) -> int:
        """Number of parts that rows are divided into to be held out."""
        return N_FOLDS if self.held_out == "kfold" else 1

    @property
    def calibrated_shares(self) -> tuple[float, ...]:
        """Shares of the positions that the image score "calibrated" averages."""
        return self.top_share or CALIBRATED_SHARES

    @property
    def patch_share(self) -> float:
        """Share of the positions that the image score "top" averages: the largest of several."""
        return PATCH_SHARE if self.top_share is None else max(self.top_share)

    @property
    def cell_bytes(self) -> int | None:
        """Limit of memory for the accumulators of one fold."""
        share = self._fold_bytes
        return share // 2 if share is not None and self.density == "gmm" else share

    @property
    def _fold_bytes(self) -> int | None:
        # A quarter is left for the rows that are scored by the other folds.
        if self.max_bytes is None or self.n_folds == 1:
            return self.max_bytes
        return self.max_bytes * 3 // (4 * self.n_folds)

    def held_sample(self, positions: int = 1) -> RowSample:
        """Return an empty sample for rows that are scored by a fit without them.

        Parameters
        ----------
        positions : int
            Number of rows that an image makes.
        """
        most = _HELD_BYTES if self.max_bytes is None else self.max_bytes // 4
        size = _HELD_ROWS * positions // self.n_folds
        return RowSample(size, self.random_state, most // self.n_folds, positions)

    def cell_sample(self, n_features: int, positions: int, *, of_class: bool) -> RowSample | None:
        """Return an empty sample of folded rows, or None.

        They are left out of their own fit; under "split" they only tell whether rows are alike.

        Parameters
        ----------
        n_features : int
            Of a row.
        positions : int
            Number of rows that an image makes.
        of_class : bool
            Whether there are other classes with samples of their own.
        """
        if self.held_out != "loo" and not self.split:
            return None
        size = (_CLASS_SAMPLE if of_class else _SAMPLE) * positions
        if self.held_out != "loo":
            size = _FEW
        most = _SAMPLE_BYTES if positions == 1 else _HELD_BYTES
        least = size // 10 if positions == 1 else positions
        if self.max_bytes is not None:
            left = max(self.max_bytes - scatter_bytes(n_features), self.max_bytes // 8)
            most, least = min(most, left // 8 if of_class else left), 2 * positions
        return RowSample(size, self.random_state, most, least)

    def in_folds(self) -> "Settings":
        """Return these settings with rows held out in folds."""
        return replace(self, held_out="kfold")

    def difference(self, other: "Settings") -> str | None:
        """Return the name of the first setting in which the two differ, or None."""
        names = [own.name for own in fields(self)]
        return next((name for name in names if getattr(self, name) != getattr(other, name)), None)


def resolve_settings(parameters: Mapping[str, Any], grids: Sequence[Grid | None]) -> Settings:
    """Return the settings of a fit with these parameters.

    Parameters
    ----------
    parameters : mapping
        Those of `DFM`, checked.
    grids : sequence of Grid or None
        The grid of each layer, None for features.

    Raises
    ------
    ValueError
        If `image_score` needs maps, which the layers do not have.
    """
    most = parse_bytes("max_memory", parameters["max_memory"])
    kinds = check_score_types(parameters["score_type"])
    rule, map_type = _rules_of_maps(parameters, kinds[0], grids)
    calibration, gmm = parameters["calibration"], parameters["density"] == "gmm"
    held_out = None
    standard = rule == "calibrated" or (rule is None and map_type is not None)
    if calibration in ("loo", "kfold") or len(grids) > 1 or standard:
        held_out = "kfold" if gmm or calibration == "kfold" else "loo"
        if gmm and calibration == "loo":
            warn_of_folds("density is 'gmm', which has no exact held-out scores")
    own = {f.name: parameters[f.name] for f in fields(Settings) if f.name in parameters}
    own["top_share"] = _shares(parameters["top_share"])
    return Settings(
        **own,
        held_out=held_out,
        map_type=map_type,
        rule=rule,
        max_bytes=None if most is None else most // len(grids),
    )


def _shares(top_share: Any) -> tuple[float, ...] | None:
    """Return the shares of a parameter that may be one number, or several."""
    if top_share is None:
        return None
    return tuple(float(share) for share in np.atleast_1d(top_share))


def warn_of_folds(reason: str) -> None:
    """Warn that rows are held out in folds in place of one by one, and why."""
    warnings.warn(
        f"{reason}: calibration is 'kfold' in place of 'loo', and a verdict costs {N_FOLDS} scores "
        "more and errs towards fewer false alarms; pass calibration='kfold' for the same without "
        "this warning, or 'split' or None",
        stacklevel=4,
    )


def _rules_of_maps(
    parameters: Mapping[str, Any], score_type: str, grids: Sequence[Grid | None]
) -> tuple[str | None, str | None]:
    """Return the rule of image scores, and the score type of held-out maps."""
    has_maps = (
        parameters["calibration"] is not None
        and parameters["spatial"] != "mean"
        and any(grid is not None and grid.positions > 1 for grid in grids)
    )
    image_score = parameters["image_score"]
    if image_score == "calibrated" and not has_maps:
        raise ValueError(
            "image_score is 'calibrated', but the features have no positions; choose layers that "
            "have maps and spatial='flatten' or 'patch', or image_score='sum'"
        )
    if parameters["spatial"] == "patch":
        return image_score or "top", score_type if has_maps else None
    rule = "sum" if parameters["combine"] != "sum" else image_score
    return rule, "fre" if has_maps else None
