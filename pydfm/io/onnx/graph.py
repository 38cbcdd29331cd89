"""A fitted model as a module of torch: uint8 pixels in, scores, p-values, verdicts and maps out.

Everything between is part of it: resize and crop, normalisation, the network, the subspaces,
standardised maps, the held-out scores. `pydfm.io.onnx.export` writes it as a graph of ONNX.

Images are resized as Pillow does: by a triangle filter as wide as a pixel of the result, first
across, then down, each time rounded to 8 bits. Here both are products with matrices of weights, in
float64, which give the same pixels; but where an image becomes lower and not narrower, Pillow goes
down first, and a fifth of the pixels differ by one of 255 levels. Projections are float32, as in
the core, and p-values float64.
"""

from typing import Any

import numpy as np
import torch
from torch import nn

from pydfm.conformal.calibration import ROUNDING, Calibration, calibration_of
from pydfm.features.taps import Tapped
from pydfm.features.transforms import Preprocessing
from pydfm.model.fitting import FittedDFM
from pydfm.model.layer import LayerModel
from pydfm.model.model import Model
from pydfm.stats.scores import CORE_SCORES

# Pillow's weights are multiples of 1 / this.
_PARTS = float(1 << 22)


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
            "fit with intensity=None"
        )
    if any(layer.density.mixtures is not None for layer in model.layers):
        raise ValueError("density is 'gmm', which cannot be exported; fit with density='gaussian'")
    if score_type not in CORE_SCORES:
        raise ValueError(
            f"score_type is {score_type!r}, which cannot be exported; set 'fre', 'mahalanobis', "
            "'nll' or 'ppca'"
        )
    if fitted.calibration == "kfold":
        raise ValueError(
            "calibration is 'kfold', whose verdicts need a model for each fold; fit with "
            "calibration='loo' or 'split', or calibrate the model by later images"
        )
    if model.n_classes > 1 and len(model.layers) > 1 and not model.by_maps(score_type):
        raise ValueError(
            "a model of several layers and classes is exported only with image_score='calibrated'; "
            "fit with that, or one layer"
        )
    model.check_scores([score_type])


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
            self.decide = Decision(calibration_of(fitted, score_type))

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
        each, maps = self.scores(features)
        found = [each.min(dim=0).values]
        if self.decide is not None:
            found += self.decide(each, alpha)
        if maps is not None:
            found.append(maps)
        return tuple(found)


class Pixels(nn.Module):
    """Resize, crop and normalisation: (N, H, W, 3) uint8 to (N, 3, height, width) float32."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self._resize = preprocessing.resize
        self._size = preprocessing.size
        self._cropped = preprocessing.crop is not None
        for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            self.register_buffer(f"_{name}", torch.tensor(values).view(1, 3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the pixels that the network takes."""
        planes = images.permute(0, 3, 1, 2).double()
        shape = torch._shape_as_tensor(images)
        height, width = shape[1].double(), shape[2].double()
        if isinstance(self._resize, int):
            short = torch.minimum(height, width)
            resized = [torch.floor(self._resize * side / short) for side in (height, width)]
        else:
            resized = [torch.full_like(height, side) for side in self._resize]
        across = self._weights(planes[0, 0, 0], width, resized[1], self._size[1])
        planes = _rounded(planes @ across.T)
        down = self._weights(planes[0, 0, :, 0], height, resized[0], self._size[0])
        planes = _rounded(down @ planes).float()
        mean: torch.Tensor = getattr(self, "_mean")  # noqa: B009 (its type)
        std: torch.Tensor = getattr(self, "_std")  # noqa: B009
        return (planes / 255 - mean) / std

    def _weights(
        self, line: torch.Tensor, length: torch.Tensor, resized: torch.Tensor, size: int
    ) -> torch.Tensor:
        """Return weights (size, length) of a line's pixels in those of the result."""
        first = torch.zeros_like(resized)
        if self._cropped:
            first = torch.round((resized - size) / 2)
        places = first + torch.arange(size, dtype=torch.float64)
        scale = length / resized
        wide = torch.clamp(scale, min=1.0)
        centres = (places + 0.5) * scale
        pixels = torch.cumsum(torch.ones_like(line, dtype=torch.float64), 0) - 0.5
        weights = torch.clamp(1 - torch.abs(pixels[None] - centres[:, None]) / wide, min=0.0)
        weights = weights / torch.clamp(weights.sum(dim=1, keepdim=True), min=1e-12)
        # As Pillow's integers, so that sums, which float64 holds exactly, are rounded as its are.
        weights = torch.floor(weights * _PARTS + 0.5) / _PARTS
        inside = (places >= 0) & (places < resized)
        return weights * inside[:, None]


def _rounded(planes: torch.Tensor) -> torch.Tensor:
    return torch.clamp(torch.floor(planes + 0.5), 0, 255)


class RowsModel(nn.Module):
    """From features (N, D) to scores (C, N) under each class, and maps (N, height, width)."""

    def __init__(self, model: Model, score_type: str, size: tuple[int, int]) -> None:
        super().__init__()
        self._by_maps = model.by_maps(score_type)
        kind = score_type
        if self._by_maps:
            scale = model.layers[0].scale
            assert scale is not None
            kind = scale.score_type
        self.layers = nn.ModuleList([LayerRows(layer, kind) for layer in model.layers])
        self.has_maps = _has_maps(model, score_type)
        self._n_classes = model.n_classes
        self._combination = model.combinations.get(score_type)
        grids = [layer.grid for layer in model.layers if layer.grid is not None]
        if self._by_maps:
            self._tops, self._positions = model.top_shares, model.grid.positions
            for i, layer in enumerate(model.layers):
                assert layer.scale is not None
                self._put(f"mean{i}", layer.scale.mean)
                self._put(f"deviation{i}", layer.scale.deviation)
        if self.has_maps:
            for i, layer in enumerate(model.layers):
                offset = np.zeros((model.n_classes, 1, 1))
                divisor = np.ones((model.n_classes, 1, 1))
                if kind in layer.map_scales:
                    own = layer.map_scales[kind]
                    offset, divisor = own.offset[:, None, None], own.divisor[:, None, None]
                elif layer.scale is not None and self._by_maps:
                    offset, divisor = layer.scale.mean, layer.scale.deviation
                self._put(f"offset{i}", offset)
                self._put(f"divisor{i}", divisor)
            for name, matrix in zip(("rows", "columns"), model.grid.matrices(size), strict=True):
                self._put(name, matrix)
        # The others are at the finest positions already.
        finest = model.grid
        self._coarser = [i for i, grid in enumerate(grids) if grid != finest]
        for i in self._coarser:
            down, across = grids[i].matrices((finest.height, finest.width), finest.reach)
            self._put(f"down{i}", down)
            self._put(f"across{i}", across)

    def _of(self, name: str) -> torch.Tensor:
        values: torch.Tensor = getattr(self, f"_{name}")
        return values

    def _put(self, name: str, values: Any) -> None:
        self.register_buffer(f"_{name}", torch.from_numpy(np.array(values, dtype=np.float32)))

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the scores and the maps, or None."""
        found = [layer(features) for layer in self.layers]  # scores (C, N), positions (C, N, h, w)
        maps = [positions for _, positions in found]
        if self._by_maps:
            scores = self._top_scores(self._joined(maps, "mean", "deviation"))
        elif len(found) == 1:
            scores = found[0][0]
        else:
            scores = self._combined(torch.stack([own[0] for own, _ in found]))[None]
        if not self.has_maps:
            return scores, None
        total = self._joined(maps, "offset", "divisor")
        total = self._of("rows") @ total @ self._of("columns").T
        if self._n_classes == 1:
            return scores, total[0]
        nearest = scores.argmin(dim=0)
        own = nearest[None, :, None, None].expand(1, *total.shape[1:])
        return scores, torch.gather(total, 0, own)[0]

    def _joined(self, maps: list[torch.Tensor], offset: str, divisor: str) -> torch.Tensor:
        """Return the sum (C, N, height, width) of the layers' maps, at the finest positions."""
        total: Any = 0
        for i, own in enumerate(maps):
            shift, by = self._of(f"{offset}{i}"), self._of(f"{divisor}{i}")
            scaled = (own - shift[:, None]) / by[:, None]
            if i in self._coarser:
                scaled = self._of(f"down{i}") @ scaled @ self._of(f"across{i}").T
            total = total + scaled
        return total  # type: ignore[no-any-return]

    def _top_scores(self, maps: torch.Tensor) -> torch.Tensor:
        flat = maps.flatten(2)
        total: Any = 0
        for s, share in enumerate(self._tops.shares):
            count = max(round(share * self._positions), 1)
            top = torch.topk(flat, count, dim=2).values.mean(dim=2)
            mean = torch.tensor(self._tops.mean[:, s : s + 1], dtype=torch.float32)
            deviation = torch.tensor(self._tops.deviation[:, s : s + 1], dtype=torch.float32)
            total = total + (top - mean) / deviation
        return total  # type: ignore[no-any-return]

    def _combined(self, scores: torch.Tensor) -> torch.Tensor:
        rule = self._combination
        assert rule is not None
        mean, scale, weights = (
            torch.tensor(own, dtype=torch.float32)[:, None]
            for own in (rule.mean, rule.scale, rule.weights)
        )
        t = (scores - mean) / scale
        if rule.rule == "max":
            return t.max(dim=0).values
        return (weights * t).sum(dim=0) + rule.offset


class LayerRows(nn.Module):
    """Scores (C, N) of a layer under each class, and of its positions (C, N, height, width)."""

    def __init__(self, layer: LayerModel, score_type: str) -> None:
        super().__init__()
        self._columns = (int(layer.columns.start), int(layer.columns.stop))
        self._grid, self._patch = layer.grid, layer.patch
        self._rule, self._share = layer.rule, layer.top_share
        self._kind = score_type
        self._constants = []
        self._noises = []
        for c, subspace in enumerate(layer.density.subspaces):
            for name, values in (
                ("mean", subspace.mean),
                ("axes", subspace.components),
                ("variances", subspace.explained_variance),
            ):
                own = torch.from_numpy(np.array(values, dtype=np.float32))
                self.register_buffer(f"_{name}{c}", own)
            self._noises.append(subspace.noise_variance)
            steady = score_type not in ("nll", "ppca")
            self._constants.append(0.0 if steady else subspace.log_constant(score_type))

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return both; positions are those of fre where an image is one sample."""
        begin, end = self._columns
        rows = features[:, begin:end]
        grid = self._grid
        assert grid is not None
        if self._patch:
            rows = rows.reshape(-1, grid.channels, grid.positions).transpose(1, 2)
        scores, positions = [], []
        for c in range(len(self._constants)):
            away = rows - getattr(self, f"_mean{c}")
            axes = getattr(self, f"_axes{c}")
            z = away @ axes.T
            rest = away - z @ axes
            own = self._score(c, z, rest)
            if self._patch:
                positions.append(own.reshape(-1, grid.height, grid.width))
                scores.append(self._pooled(own))
            else:
                shape = (-1, grid.channels, grid.height, grid.width)
                positions.append(torch.square(rest).reshape(shape).sum(dim=1))
                scores.append(own)
        return torch.stack(scores), torch.stack(positions)

    def _score(self, c: int, z: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        residual = torch.square(rest).sum(dim=-1)
        if self._kind == "fre":
            return residual
        variances: torch.Tensor = getattr(self, f"_variances{c}")
        distance = (torch.square(z) / variances).sum(dim=-1)
        if self._kind == "mahalanobis":
            return distance
        if self._kind == "ppca":
            distance = distance + residual / self._noises[c]
        score: torch.Tensor = 0.5 * distance + self._constants[c]
        return score

    def _pooled(self, scores: torch.Tensor) -> torch.Tensor:
        """Return scores (N,) of images from those (N, positions) of their patches."""
        pooled: torch.Tensor
        if self._rule == "max":
            pooled = scores.max(dim=1).values
            return pooled
        if self._rule == "top":
            assert self._grid is not None
            count = max(round(self._share * self._grid.positions), 1)
            return torch.topk(scores, count, dim=1).values.mean(dim=1)
        return scores.mean(dim=1) if self._rule == "mean" else scores.sum(dim=1)


class Decision(nn.Module):
    """From scores (C, N) and a level to p-values (N,) and verdicts (N,)."""

    def __init__(self, calibration: Calibration) -> None:
        super().__init__()
        self._places = [int(c) for c in np.flatnonzero(calibration.usable)]
        self._units = [float(calibration.n_units[c]) for c in self._places]
        for c in self._places:
            ranks = calibration.ranks[c][0]
            weights = ranks.weights[:-1] - ranks.weights[1:]
            self.register_buffer(f"_scores{c}", torch.from_numpy(ranks.scores.copy()))
            self.register_buffer(f"_weights{c}", torch.from_numpy(weights.astype(np.float64)))

    def forward(self, scores: torch.Tensor, alpha: torch.Tensor) -> list[torch.Tensor]:
        """Return p-values and verdicts."""
        p_values, passed = [], []
        for c, n in zip(self._places, self._units, strict=True):
            higher = (getattr(self, f"_scores{c}")[None] >= scores[c][:, None]).double()
            rank = 1 + (higher * getattr(self, f"_weights{c}")[None]).sum(dim=1)
            p_values.append(rank / (n + 1))
            most = torch.clamp(alpha * (n + 1) + ROUNDING, min=1 + ROUNDING)
            passed.append(rank > most)
        p = torch.stack(p_values).max(dim=0).values
        normal = torch.stack(passed).any(dim=0)
        return [p, normal.long() * 2 - 1]


def _has_maps(model: Model, score_type: str) -> bool:
    if model.map_type(score_type) != score_type:
        return False
    # Files of before add up layers' maps in another way.
    return len(model.layers) == 1 or model.has_scaled_maps(score_type)
