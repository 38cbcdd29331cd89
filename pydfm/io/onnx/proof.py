"""The proof of an export: images scored by pydfm and by onnxruntime, side by side."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from pydfm.features.inputs.images import ImageError
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
    typical : float
        The median of these differences.
    changed : tuple of str
        Images whose verdicts differ.
    near : int
        Images whose verdicts differ within 1e-3 of the threshold; they are not in `changed`.
    map_share : float or None
        Share of the pixels of maps that are on another side of the threshold of maps; None without
        maps.
    anomalous : (int, int) or None
        Images that are anomalous to the model, and to the export; None without calibration.
    """

    n_images: int
    difference: float
    typical: float
    changed: tuple[str, ...]
    near: int
    map_share: float | None
    anomalous: tuple[int, int] | None

    @property
    def holds(self) -> bool:
        """Whether the export gives the model's scores and verdicts."""
        return self.difference < LARGEST and not self.changed

    def lines(self) -> list[str]:
        """Say it in words, and what is proven."""
        end = "the export gives the model's answers" if self.holds else "the export is not equal"
        return [f"images      {self.n_images}", *self.figures(), f"proof       {end}"]

    def figures(self) -> list[str]:
        """Say in words how far the export differs."""
        typical, most = (f"{share:.2g}" for share in (self.typical, self.difference))
        unit = "mean score" if self.anomalous is None else "threshold"
        found = [f"scores      differ by at most {most} of the {unit} ({typical} at the median)"]
        if self.anomalous is not None:
            model, export = self.anomalous
            near = f", {self.near} more within {LARGEST:g} of the threshold" if self.near else ""
            found.append(f"verdicts    {len(self.changed)} differ{near}")
            found += [f"            {name}" for name in self.changed]
            found.append(f"anomalous   {model} by the model, {export} by the export")
        if self.map_share is not None:
            found.append(f"maps        {100 * self.map_share:.2g} % of the pixels on another side")
        return found


def prove(dfm: "DFM", path: Any, images: Sequence[str]) -> Proof:
    """Compare an export with its model, image by image.

    Images that cannot be read are left out, with a warning, where the model's `on_error` is "skip".

    Parameters
    ----------
    dfm : DFM
    path : path
        The export.
    images : sequence of str
        Paths.

    Raises
    ------
    ImageError
        If an image cannot be read, unless these are skipped; or if none can.
    """
    return compare([dfm], path, images)[0]


def compare(models: "Sequence[DFM]", path: Any, images: Sequence[str]) -> list[Proof]:
    """Compare an export with several models as `prove` does; it scores the images once."""
    export, own = OnnxModel(path), models[0]
    comparisons = [_Comparison(dfm) for dfm in models]
    errors: list[ImageError] = []
    for first in range(0, len(images), own.batch_size):  # so that few maps are held at once
        read, runs = [], []
        for image in images[first : first + own.batch_size]:
            try:
                pixels = read_pixels(image, own.max_pixels)
            except ImageError as error:
                errors.append(error)
                if own.on_error != "skip":
                    raise
                continue
            read.append(image)
            runs.append(export.run(pixels[None]))
        if read:
            found = {name: np.concatenate([run[name] for run in runs]) for name in export.outputs}
            for comparison in comparisons:
                comparison.add(read, found)
    if errors:
        told = f"the first: {errors[0]}"
        if len(errors) == len(images):
            raise ImageError(f"none of the {len(images)} images can be read; {told}")
        warnings.warn(f"{len(errors)} of {len(images)} images were skipped; {told}", stacklevel=3)
    return [comparison.conclude() for comparison in comparisons]


class _Comparison:
    """Takes what an export says of images in batches, beside a model, then concludes."""

    def __init__(self, dfm: "DFM") -> None:
        self._dfm = dfm
        (self._kind, *_) = check_score_types(dfm.score_type)
        self._images: list[str] = []
        self._off: list[NDArray[np.float64]] = []
        self._sizes: list[NDArray[np.float64]] = []  # of the model's scores
        self._margins: list[NDArray[np.float64]] = []
        self._verdicts: list[NDArray[Any]] = []  # of the export
        self._others = self._pixels = 0  # pixels of maps on another side, and of all
        known = dfm.fitted_.held_out if dfm.calibration_ is not None else None
        self._has_level = (
            known is not None
            and known.map_maxima is not None
            and known.map_type in (None, self._kind)
        )

    def add(self, images: list[str], found: dict[str, NDArray[Any]]) -> None:
        """Add the export's outputs for some images."""
        dfm = self._dfm
        features = dfm.extract(images)
        want = dfm.score(features, score_type=self._kind).astype(np.float64)
        self._images += images
        self._off.append(np.abs(found["score"].astype(np.float64) - want))
        self._sizes.append(np.abs(want))
        if "verdict" in found:
            self._margins.append(dfm.decision_function(features))
            self._verdicts.append(found["verdict"])
            if "map" in found and self._has_level:
                level = dfm.map_threshold_
                mine = dfm.score_map(features, score_type=self._kind) > level
                self._others += int((mine != (found["map"] > level)).sum())
                self._pixels += mine.size

    def conclude(self) -> Proof:
        """Return the proof."""
        dfm, off = self._dfm, np.concatenate(self._off)
        scale = max(float(np.concatenate(self._sizes).mean()), np.finfo(np.float64).tiny)
        changed: list[str] = []
        near, anomalous = 0, None
        if self._verdicts:
            thresholds, held_out = _thresholds(dfm), dfm.held_out_scores_
            scale = max(float(np.nanmax(np.abs(thresholds))), float(held_out.std()))
            margins, theirs = np.concatenate(self._margins), np.concatenate(self._verdicts)
            verdicts = np.where(margins < 0, -1, 1)
            anomalous = (int((verdicts < 0).sum()), int((theirs < 0).sum()))
            for i in np.flatnonzero(theirs != verdicts).tolist():
                if abs(margins[i]) <= LARGEST * scale:
                    near += 1
                else:
                    changed.append(self._images[i])
        off /= scale
        typical, most = float(np.median(off)), float(off.max())
        share = self._others / self._pixels if self._pixels else None
        return Proof(len(off), most, typical, tuple(changed), near, share, anomalous)


def _thresholds(dfm: "DFM") -> NDArray[np.float64]:
    """Return the thresholds of the classes; under folds, which have none, what is near them."""
    if dfm.fitted_.held_out.folds:
        return np.array([np.quantile(dfm.held_out_scores_, 1 - dfm.alpha)])
    return np.atleast_1d(dfm.threshold_)
