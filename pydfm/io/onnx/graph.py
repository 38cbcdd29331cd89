"""A fitted model as a module of torch: uint8 pixels in, scores, p-values, verdicts and maps out.

Everything between is part of it: resize and crop, normalisation, the network, the subspaces,
standardised maps, the held-out scores. `pydfm.io.onnx.export` writes it as a graph of ONNX.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from pydfm.conformal.calibration import ROUNDING, Calibration, calibration_of
from pydfm.features.taps import Tapped
from pydfm.io.onnx.pixels import Pixels
from pydfm.io.onnx.rows import RowsModel, has_maps
from pydfm.model.fitting import FittedDFM
from pydfm.model.held_out import FoldModel
from pydfm.stats.scores import CORE_SCORES

# Scores whose formulas the graph has.
_EXPORTED = (*CORE_SCORES, "relative_mahalanobis")


def check_exportable(fitted: FittedDFM, score_type: str) -> None:
    """Raise ValueError, with what to do, where a model cannot be one graph.

    Parameters
    ----------
    fitted : FittedDFM
    score_type : str
        The one that decides.
    """
    spec, model = fitted.spec, fitted.model
    if spec is None:
        raise ValueError(
            "the model was fitted on features, and an export begins with images; fit it on images"
        )
    if spec.preprocessing.intensity is not None:
        raise ValueError(
            f"intensity is {spec.preprocessing.intensity!r}, and an export takes images of 8 bits; "
            "save the images with 8 bits, and fit with intensity=None"
        )
    if spec.precision != "float32":
        raise ValueError(
            f"precision is {spec.precision!r}, and an export computes in float32, which makes "
            "other features; fit with precision='float32'"
        )
    if score_type not in _EXPORTED:
        listed = ", ".join(repr(kind) for kind in _EXPORTED)
        raise ValueError(
            f"score_type is {score_type!r}, which cannot be exported; set one of {listed}"
        )
    model.check_scores([score_type])
    if model.map_type(score_type) == score_type and not has_maps(model, score_type):
        warnings.warn(
            "the model's file is of before maps of several layers had scales, so that the export "
            "has scores and no maps; fit again for maps",
            stacklevel=4,
        )


class PixelModel(nn.Module):
    """From pixels of images to what a fitted model says of them.

    Parameters
    ----------
    fitted : FittedDFM
        One that `check_exportable` passes.
    tapped : Tapped
        Its network, on the CPU.
    score_type : str
    """

    def __init__(self, fitted: FittedDFM, tapped: Tapped, score_type: str) -> None:
        super().__init__()
        self.score_type, self.size = score_type, tapped.preprocessing.size
        self.pixels = Pixels(tapped.preprocessing)
        self.network = tapped.taps
        self.scores = RowsModel(fitted.model, score_type, self.size)
        self.decide: Decision | None = None
        if fitted.calibration is not None:
            calibration = calibration_of(fitted, score_type)
            self.decide = Decision(calibration, fitted.held_out.folds, score_type)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what `forward` returns."""
        names = ["score"]
        if self.decide is not None:
            names += ["p_value", "verdict"]
        if self.scores.has_maps:
            names.append("map")
        return tuple(names)

    def forward(self, images: torch.Tensor, alpha: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return what `outputs` names.

        Parameters
        ----------
        images : torch.Tensor of shape (N, H, W, 3), uint8
            RGB, of any size.
        alpha : torch.Tensor of shape (), float64
            The false-alarm rate.

        Returns
        -------
        score : torch.Tensor of shape (N,), float32
        p_value : torch.Tensor of shape (N,), float64
        verdict : torch.Tensor of shape (N,), int64
            +1 for normal, -1 for anomalous.
        map : torch.Tensor of shape (N, height, width), float32
            At the size of the network's input, where the model has maps.
        """
        features = self.network(self.pixels(images)).float()
        scores, each, maps = self.scores(features)
        found = [scores]
        if self.decide is not None:
            found += self.decide(features, each, alpha)
        if maps is not None:
            found.append(maps)
        return tuple(found)


class Decision(nn.Module):
    """From scores (C, N) and a level to p-values (N,) and verdicts (N,).

    Under folds, rows are compared with the held-out scores of each fold under the model of the
    others, which is part of the graph: it scores the same features.

    Parameters
    ----------
    calibration : Calibration
    folds : sequence of FoldModel or None
        Empty without folds.
    score_type : str

    Attributes
    ----------
    calibration : Calibration
    """

    def __init__(
        self, calibration: Calibration, folds: Sequence[FoldModel | None], score_type: str
    ) -> None:
        super().__init__()
        self._places = [int(c) for c in np.flatnonzero(calibration.usable)]
        self._units = [float(n) for n in calibration.n_units]
        self.calibration = calibration
        self.folds = nn.ModuleDict()
        # Of each class: the fold, and the place of the class among those of the fold.
        self._compared: dict[int, list[tuple[int, int]]] = {c: [] for c in self._places}
        for k in range(len(calibration.ranks[0])):
            classes = list(range(len(calibration.ranks)))
            if folds:
                fold = folds[k]
                if fold is None:  # no row of this fold is held out
                    continue
                self.folds[str(k)] = RowsModel(fold.model, score_type)
                classes = [int(c) for c in fold.classes]
            for place, c in enumerate(classes):
                ranks = calibration.ranks[c][k]
                if len(ranks.scores) == 0:
                    continue
                weights = (ranks.weights[:-1] - ranks.weights[1:]).astype(np.float64)
                self.register_buffer(f"_scores{c}_{k}", torch.from_numpy(ranks.scores.copy()))
                self.register_buffer(f"_weights{c}_{k}", torch.from_numpy(weights))
                self._compared[c].append((k, place))

    def forward(
        self, features: torch.Tensor, scores: torch.Tensor, alpha: torch.Tensor
    ) -> list[torch.Tensor]:
        """Return p-values and verdicts.

        Parameters
        ----------
        features : torch.Tensor of shape (N, D)
        scores : torch.Tensor of shape (C, N)
        alpha : torch.Tensor of shape ()
        """
        under = {int(k): fold(features)[1] for k, fold in self.folds.items()} or {0: scores}
        p_values, passed = [], []
        for c in self._places:
            rank: Any = 1
            for k, place in self._compared[c]:
                held_out = getattr(self, f"_scores{c}_{k}")
                higher = (held_out[None] >= under[k][place][:, None]).double()
                rank = rank + (higher * getattr(self, f"_weights{c}_{k}")[None]).sum(dim=1)
            n = self._units[c]
            p_values.append(rank / (n + 1))
            most = torch.clamp(alpha * (n + 1) + ROUNDING, min=1 + ROUNDING)
            passed.append(rank > most)
        p = torch.stack(p_values).max(dim=0).values
        normal = torch.stack(passed).any(dim=0)
        return [p, normal.long() * 2 - 1]
