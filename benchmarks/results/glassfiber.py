"""Defects on an industrial surface: images and pixels, beside anomalib's formula."""

from pathlib import Path

import numpy as np
import torch

from benchmarks.report import Table, verdict
from pydfm import DFM
from pydfm.datasets import load_category, load_masks
from pydfm.evaluation import aupro, evaluate, pixel_auroc

SIZE, POOL, SHARE, TARGET = 256, 2, 0.97, 0.92
WEIGHTS = "resnet18_imagenet_to_layer3.safetensors"

_HEADER = ("who", "k", "image AUROC", "AUPR", "F1", "FPR95", "pixel AUROC", "AUPRO", "target")


def tables(data: Path) -> dict[str, tuple[str, Table]]:
    category = load_category(data / "glassfiber")
    masks = load_masks(category, (SIZE, SIZE))
    labels = np.array(category.labels)
    rows = []
    for title, weights in (("ImageNet", data / WEIGHTS), ("random weights", None)):
        dfm = DFM(
            SHARE,
            weights=weights,
            layers="layer3",
            image_score="sum",
            pool=POOL,
            image_size=SIZE,
        )
        dfm.fit(category.train)
        train, test = dfm.extract(category.train), dfm.extract(category.test)
        residuals = _residuals(test, dfm.mean_, dfm.components_)
        scores = dfm.score(category.test)
        # The maps below are made of the very residuals whose squared norm is the score.
        np.testing.assert_allclose(scores, (residuals**2).sum(axis=1), rtol=1e-4)
        target = TARGET if weights is not None else None
        k = dfm.n_components_
        rows.append(
            [f"pydfm, {title}", str(k), *_measure(scores, labels, residuals, masks, target)]
        )
        mean, components = _anomalib_pca(train)
        residuals = _residuals(test, mean, components)
        scores = (residuals**2).sum(axis=1)
        figures = _measure(scores, labels, residuals, masks, None)
        rows.append([f"anomalib's formula, {title}", str(len(components)), *figures])
    return {"glassfiber": ("Glass fiber", Table(_HEADER, rows))}


def _measure(scores, labels, residuals, masks, target):
    image = evaluate(scores, labels)
    maps = _maps(residuals)
    values = [image[name] for name in ("auroc", "aupr", "f1_max", "fpr95")]
    values += [pixel_auroc(maps, masks), aupro(maps, masks)]
    told = "" if target is None else verdict(image["auroc"] >= target, f"AUROC >= {target}")
    return [*(f"{value:.3f}" for value in values), told]


def _residuals(features, mean, components):
    centred = features.astype(np.float64) - mean
    return centred - (centred @ components.T) @ components


def _maps(residuals):
    """Squared residuals summed over the channels, resized to the picture."""
    side = SIZE // 16 // POOL
    squares = torch.from_numpy((residuals**2).reshape(len(residuals), -1, side, side).sum(axis=1))
    maps = torch.nn.functional.interpolate(
        squares[:, None], (SIZE, SIZE), mode="bilinear", align_corners=False
    )
    return maps[:, 0].float().numpy()


def _anomalib_pca(features):
    """As its DFM defines it: SVD of the centred rows; k is an index, so one fewer than needed."""
    rows = features.astype(np.float64)
    mean = rows.mean(axis=0)
    _, singular, directions = np.linalg.svd(rows - mean, full_matrices=False)
    shares = np.cumsum(singular**2) / np.sum(singular**2)
    return mean, directions[: int(np.argmax(shares >= SHARE))]
