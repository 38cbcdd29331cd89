"""From features to scores and maps, as modules of torch: what `RowScores` computes, in one graph.

Projections are float32, as in the core, but float64 where a score is the difference of two numbers
of like size, as `relative_mahalanobis` is.
"""

from typing import Any

import numpy as np
import torch
from torch import nn

from pydfm.model.layer import LayerModel
from pydfm.model.model import Model
from pydfm.stats.density import Density
from pydfm.stats.mixture import Mixture
from pydfm.stats.scores import SCORES
from pydfm.stats.subspace import Subspace


class _Constants(nn.Module):
    """A module that keeps arrays as constants."""

    def _put(self, name: str, values: Any, dtype: torch.dtype = torch.float32) -> None:
        self.register_buffer(f"_{name}", torch.from_numpy(np.array(values)).to(dtype))

    def _of(self, name: str) -> torch.Tensor:
        values: torch.Tensor = getattr(self, f"_{name}")
        return values


class RowsModel(_Constants):
    """From features (N, D) to scores, and maps.

    Parameters
    ----------
    model : Model
    score_type : str
    size : (int, int), optional
        Height and width of the maps; default none.
    """

    def __init__(self, model: Model, score_type: str, size: tuple[int, int] | None = None) -> None:
        super().__init__()
        self._by_maps = model.by_maps(score_type)
        self._rule = ""
        kind = score_type
        if self._by_maps:
            scale = model.layers[0].scale
            assert scale is not None
            kind = scale.score_type
            tops = model.top_shares
            self._counts = [max(round(share * model.grid.positions), 1) for share in tops.shares]
            self._put("tops_mean", tops.mean)
            self._put("tops_deviation", tops.deviation)
        elif len(model.layers) > 1:
            combination = model.combinations[score_type]
            self._rule = combination.rule
            for name in ("mean", "scale", "weights"):
                self._put(f"rule_{name}", getattr(combination, name)[:, None])
            self._put("rule_offset", combination.offset)
        self.layers = nn.ModuleList([LayerRows(layer, kind) for layer in model.layers])
        self.has_maps = size is not None and has_maps(model, score_type)
        self._coarser = []
        if self._by_maps or self.has_maps:
            finest = model.grid
            for i, layer in enumerate(model.layers):
                assert layer.grid is not None
                self._put_units(i, layer, score_type)
                if layer.grid != finest:
                    self._coarser.append(i)
                    down, across = layer.grid.matrices((finest.height, finest.width), finest.reach)
                    self._put(f"down{i}", down)
                    self._put(f"across{i}", across)
            if size is not None:
                for name, matrix in zip(("rows", "columns"), finest.matrices(size), strict=True):
                    self._put(name, matrix)

    def _put_units(self, i: int, layer: LayerModel, score_type: str) -> None:
        """Keep what the values of a layer's positions are measured in: for scores, and for maps."""
        if layer.scale is not None:
            self._put(f"mean{i}", layer.scale.mean)
            self._put(f"deviation{i}", layer.scale.deviation)
        own = layer.map_scales.get(score_type)
        if own is not None:
            self._put(f"offset{i}", own.offset[:, None, None])
            self._put(f"divisor{i}", own.divisor[:, None, None])
        elif self._by_maps and layer.scale is not None:
            self._put(f"offset{i}", layer.scale.mean)
            self._put(f"divisor{i}", layer.scale.deviation)
        else:
            ones = np.ones((len(layer.density.subspaces), 1, 1))
            self._put(f"offset{i}", 0 * ones)
            self._put(f"divisor{i}", ones)

    def forward(
        self, features: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return scores (N,), those under each class (C, N), and maps (N, height, width)."""
        found = [layer(features) for layer in self.layers]
        maps = [positions for _, positions in found]  # (C, N, h, w)
        each = torch.stack([scores for scores, _ in found])  # (L, C, N)
        nearest = each.argmin(dim=1)  # as each layer by itself has it
        if self._by_maps:
            under = self._top_scores(maps)
            scores, own = under.min(dim=0)
            nearest = own.expand(len(found), -1)
        elif len(found) == 1:
            under = each[0]
            scores = under.min(dim=0).values
        else:
            under = self._combined(each.transpose(0, 1))
            scores = self._combined(each.min(dim=1).values[None])[0]
        if not self.has_maps:
            return scores, under, None
        scaled = []
        for i, own in enumerate(maps):
            values = (own - self._of(f"offset{i}")[:, None]) / self._of(f"divisor{i}")[:, None]
            place = nearest[i].reshape(1, -1, 1, 1).expand(1, *values.shape[1:])
            scaled.append(torch.gather(values, 0, place)[0])
        total = self._of("rows") @ self._added(scaled) @ self._of("columns").T
        return scores, under, total

    def _added(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Return the sum of the layers' maps (..., height, width), at the finest positions."""
        total: Any = 0
        for i, own in enumerate(maps):
            if i in self._coarser:
                own = self._of(f"down{i}") @ own @ self._of(f"across{i}").T
            total = total + own
        return total  # type: ignore[no-any-return]

    def _top_scores(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Return scores (C, N) by standardised maps."""
        standard = [
            (own - self._of(f"mean{i}")[:, None]) / self._of(f"deviation{i}")[:, None]
            for i, own in enumerate(maps)
        ]
        flat = self._added(standard).flatten(2)
        tops = [torch.topk(flat, count, dim=2).values.mean(dim=2) for count in self._counts]
        mean, deviation = self._of("tops_mean")[:, None], self._of("tops_deviation")[:, None]
        return ((torch.stack(tops, dim=2) - mean) / deviation).sum(dim=2)

    def _combined(self, scores: torch.Tensor) -> torch.Tensor:
        """Return scores (..., N) of all layers together from those of each (..., L, N)."""
        t = (scores - self._of("rule_mean")) / self._of("rule_scale")
        if self._rule == "max":
            return t.max(dim=-2).values
        return (self._of("rule_weights") * t).sum(dim=-2) + self._of("rule_offset")


class LayerRows(nn.Module):
    """Scores (C, N) of a layer under each class, and of its positions (C, N, height, width)."""

    def __init__(self, layer: LayerModel, score_type: str) -> None:
        super().__init__()
        self._columns = (int(layer.columns.start), int(layer.columns.stop))
        self._grid, self._patch = layer.grid, layer.patch
        self._rule, self._share = layer.rule, layer.top_share
        density = layer.density
        self._background: SubspaceRows | None = None
        if SCORES[score_type].background:
            assert density.background is not None
            self._background = SubspaceRows(density.background, "mahalanobis", torch.float64)
        places = range(len(density.subspaces))
        self.classes = nn.ModuleList([_class_rows(density, c, score_type) for c in places])

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return both; positions are those of fre where an image is one sample."""
        begin, end = self._columns
        rows = features[:, begin:end]
        grid = self._grid
        assert grid is not None
        if self._patch:
            rows = rows.reshape(-1, grid.channels, grid.positions).transpose(1, 2)
        else:
            rows = rows[:, None]
        less = None if self._background is None else self._background(rows)[0]
        scores, positions = [], []
        for one in self.classes:
            own, rest = one(rows)
            if less is not None:
                own = (own - less).float()
            if self._patch:
                positions.append(own.reshape(-1, grid.height, grid.width))
                scores.append(self._pooled(own))
            else:
                shape = (-1, grid.channels, grid.height, grid.width)
                positions.append(torch.square(rest).reshape(shape).sum(dim=1).float())
                scores.append(own[:, 0])
        return torch.stack(scores), torch.stack(positions)

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


def _class_rows(density: Density, c: int, score_type: str) -> "SubspaceRows | MixtureRows":
    """Return what scores rows under a class; a background is compared with the class's subspace."""
    subspace = density.subspaces[c]
    if SCORES[score_type].background:
        return SubspaceRows(subspace, "mahalanobis", torch.float64)
    if density.mixtures is not None and score_type != "fre":
        return MixtureRows(subspace, density.mixtures[c], score_type)
    return SubspaceRows(subspace, score_type)


class SubspaceRows(_Constants):
    """Scores (N, R) of rows (N, R, D) under a Gaussian in a subspace, and residuals (N, R, D)."""

    def __init__(
        self, subspace: Subspace, score_type: str, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self._kind, self._dtype = score_type, dtype
        self._is_point = len(subspace.components) == 0
        for name, values in (
            ("mean", subspace.mean),
            ("axes", subspace.components),
            ("variances", subspace.explained_variance),
        ):
            self._put(name, values, dtype)
        self._noise = subspace.noise_variance
        self._constant = 0.0
        if SCORES[score_type].constants:
            self._constant = subspace.log_constant(score_type)

    def forward(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return both."""
        z, rest = self.project(rows)
        if self._kind == "fre":
            return torch.square(rest).sum(dim=-1), rest
        score = (torch.square(z) / self._of("variances")).sum(dim=-1)
        if self._kind == "ppca":
            score = score + torch.square(rest).sum(dim=-1) / self._noise
        if self._kind != "mahalanobis":
            score = 0.5 * score + self._constant
        return score, rest

    def project(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return coordinates (N, R, k) in the subspace, and residuals (N, R, D)."""
        away = rows.to(self._dtype) - self._of("mean")
        axes = self._of("axes")
        if self._is_point:  # a class of one image; some runtimes have no empty constants
            return away[..., :0], away
        z = away @ axes.T
        return z, away - z @ axes


class MixtureRows(_Constants):
    """Scores (N, R) of rows (N, R, D) under a mixture in a subspace, and residuals (N, R, D)."""

    def __init__(self, subspace: Subspace, mixture: Mixture, score_type: str) -> None:
        super().__init__()
        self._kind = score_type
        self.subspace = SubspaceRows(subspace, "mahalanobis")
        kind = "mahalanobis" if score_type == "mahalanobis" else "nll"
        self.gaussians = nn.ModuleList([SubspaceRows(own, kind) for own in mixture.gaussians])
        self._put("log_weights", np.log(mixture.weights)[:, None, None])
        # What probabilistic PCA adds for the noise outside of the subspace.
        self._noise = subspace.noise_variance
        self._constant = 0.0
        if score_type == "ppca":
            self._constant = subspace.log_constant("ppca") - subspace.log_constant("nll")

    def forward(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return both."""
        z, rest = self.subspace.project(rows)
        each = torch.stack([own(z)[0] for own in self.gaussians])  # (M, N, R)
        if self._kind == "mahalanobis":
            return each.min(dim=0).values, rest
        likely = self._of("log_weights") - each
        top = likely.max(dim=0).values
        score = -top - torch.log(torch.exp(likely - top).sum(dim=0))
        if self._kind == "ppca":
            score = score + 0.5 * torch.square(rest).sum(dim=-1) / self._noise + self._constant
        return score, rest


def has_maps(model: Model, score_type: str) -> bool:
    """Whether an export has maps: where the model has, but not as files of before add up layers."""
    if model.map_type(score_type) != score_type:
        return False
    return len(model.layers) == 1 or model.has_scaled_maps(score_type)
