"""The proof of an export: images scored by pydfm and by onnxruntime, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from pydfm.io.onnx.session import OnnxModel, read_pixels
from pydfm.stats.scores import check_score_types

if TYPE_CHECKING:
    from pydfm.estimator import DFM

LARGEST: Final = 1e-3
"""Differences up to this share of the threshold are none."""


@dataclass(frozen=True)
class Proof:
    """How far an export differs from its model.

    Attributes
    ----------
    n_images : int
    difference : float
        The largest difference of a score, as a share of the threshold (of the deviation of the
        held-out scores, where that is larger; under folds, of their quantile at the level; without
        calibration, of the scores).
    changed : tuple of str
        Images whose verdicts differ.
    near : int
        Images whose verdicts differ within 1e-3 of the threshold; they are not in `changed`.
    map_share : float or None
        Share of the pixels of maps that are on another side of the threshold of maps; None without
        maps.
    """

    n_images: int
    difference: float
    changed: tuple[str, ...]
    near: int
    map_share: float | None

    @property
    def holds(self) -> bool:
        """Whether the export gives the model's scores and verdicts."""
        return self.difference < LARGEST and not self.changed

    def lines(self) -> list[str]:
        """Say it in words."""
        found = [
            f"images      {self.n_images}",
            f"scores      differ by at most {self.difference:.2g} of the threshold",
            f"verdicts    {len(self.changed)} differ"
            + (f", {self.near} more within {LARGEST:g} of the threshold" if self.near else ""),
        ]
        found += [f"            {name}" for name in self.changed]
        if self.map_share is not None:
            found.append(f"maps        {100 * self.map_share:.2g} % of the pixels on another side")
        end = "the export gives the model's answers" if self.holds else "the export is not equal"
        return [*found, f"proof       {end}"]


def prove(dfm: "DFM", path: Any, images: Sequence[str]) -> Proof:
    """Compare an export with its model, image by image.

    Parameters
    ----------
    dfm : DFM
    path : path
        The export.
    images : sequence of str
        Paths.
    """
    model = OnnxModel(path)
    (kind, *_) = check_score_types(dfm.score_type)
    runs = [model.run(read_pixels(image, dfm.max_pixels)[None]) for image in images]
    found = {name: np.concatenate([run[name] for run in runs]) for name in model.outputs}
    features = dfm.extract(list(images))
    want = dfm.score(features, score_type=kind).astype(np.float64)
    off = np.abs(found["score"].astype(np.float64) - want)
    scale = max(float(np.abs(want).mean()), np.finfo(np.float64).tiny)
    changed: list[str] = []
    near, share = 0, None
    if "verdict" in found:
        thresholds, held_out = _thresholds(dfm), dfm.held_out_scores_
        scale = max(float(np.nanmax(np.abs(thresholds))), float(held_out.std()))
        margins = dfm.decision_function(features)
        for i in np.flatnonzero(found["verdict"] != np.where(margins < 0, -1, 1)).tolist():
            if abs(margins[i]) <= LARGEST * scale:
                near += 1
            else:
                changed.append(images[i])
        known = dfm.fitted_.held_out
        if "map" in found and known.map_maxima is not None and known.map_type in (None, kind):
            level = dfm.map_threshold_
            mine = dfm.score_map(features, score_type=kind) > level
            share = float((mine != (found["map"] > level)).mean())
    return Proof(len(images), float(off.max() / scale), tuple(changed), near, share)


def _thresholds(dfm: "DFM") -> NDArray[np.float64]:
    """Return the thresholds of the classes; under folds, which have none, what is near them."""
    if dfm.fitted_.held_out.folds:
        return np.array([np.quantile(dfm.held_out_scores_, 1 - dfm.alpha)])
    return np.atleast_1d(dfm.threshold_)
