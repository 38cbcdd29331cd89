"""The proof of an export: images scored by pydfm and by onnxruntime, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pydfm.io.onnx.session import OnnxModel, read_pixels

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
        held-out scores, where that is larger; without calibration, of the scores).
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
    runs = [model.run(read_pixels(image, dfm.max_pixels)[None]) for image in images]
    scores = np.concatenate([run["score"] for run in runs]).astype(np.float64)
    want = dfm.score(list(images)).astype(np.float64)
    want = want if want.ndim == 1 else want[:, 0]
    off = np.abs(scores - want)
    changed: list[str] = []
    near = 0
    scale = max(float(np.abs(want).mean()), np.finfo(np.float64).tiny)
    if "verdict" in model.outputs:
        thresholds = np.atleast_1d(dfm.threshold_)
        held_out = dfm.held_out_scores_
        scale = max(float(np.nanmax(np.abs(thresholds))), float(held_out.std()))
        margins = np.abs(dfm.decision_function(list(images)))
        verdicts = np.concatenate([run["verdict"] for run in runs])
        for i in np.flatnonzero(verdicts != dfm.predict(list(images))):
            if margins[i] <= LARGEST * scale:
                near += 1
            else:
                changed.append(images[int(i)])
    share = None
    decides = "verdict" in model.outputs
    if "map" in model.outputs and decides and dfm.fitted_.held_out.map_maxima is not None:
        level = dfm.map_threshold_
        mine = dfm.score_map(list(images)) > level
        theirs = np.concatenate([run["map"] for run in runs]) > level
        share = float((mine != theirs).mean())
    return Proof(len(images), float(off.max() / scale), tuple(changed), near, share)
