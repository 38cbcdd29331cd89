"""Defects on an industrial surface and on cookies: images and pixels, beside anomalib's formula."""

from pathlib import Path

import numpy as np

from benchmarks.report import Table, verdict
from pydfm import DFM
from pydfm.datasets.category import load_category
from pydfm.datasets.masks import load_masks
from pydfm.datasets.measure import measure_category
from pydfm.metrics import aupro, evaluate, pixel_auroc

SIZE, SHARE, TARGET = 256, 0.97, 0.92
WEIGHTS = "resnet18_imagenet_to_layer3.safetensors"
LAYER3 = {"layers": "layer3", "pool": 2, "image_score": "sum"}
BOTH = {"layers": ("layer2", "layer3"), "pool": (4, 2), "image_score": "sum"}

# With ImageNet weights; score types other than fre have no map of a whole image.
VARIANTS = {
    "layer3, ppca": {**LAYER3, "score_type": "ppca"},
    "layer3, mahalanobis, shrinkage": {
        **LAYER3,
        "score_type": "mahalanobis",
        "regularization": "shrinkage",
    },
    "layer2": {"layers": "layer2", "pool": 4, "image_score": "sum"},
    "layer3, calibrated": {**LAYER3, "image_score": "calibrated"},
    "layer2 + layer3, calibrated": {**BOTH, "pool": 2, "image_score": "calibrated"},
    "layer2 + layer3, calibrated, one share": {
        **BOTH,
        "pool": 2,
        "image_score": "calibrated",
        "top_share": 0.1,
    },
    "layer2 + layer3, sum": BOTH,
    "layer2 + layer3, max": {**BOTH, "combine": "max"},
    "layer2, patches": {"layers": "layer2", "spatial": "patch"},
    "layer3, patches": {"layers": "layer3", "spatial": "patch"},
    "layer3, patches, ppca": {"layers": "layer3", "spatial": "patch", "score_type": "ppca"},
    "layer2 + layer3, patches, sum": {"layers": ("layer2", "layer3"), "spatial": "patch"},
}

# The default score of aligned maps at strides 8 and 16, on both sets.
DEFAULT = {"layers": ("layer2", "layer3"), "pool": 2}
SETS = {
    "glassfiber": {"AUROC": 0.978},
    "cookie": {"AUROC": 0.96, "pixel AUROC": 0.92, "AUPRO": 0.74},
}

_IMAGE = ("auroc", "aupr", "f1_max", "fpr95")
_HEADER = ("who", "k", "image AUROC", "AUPR", "F1", "FPR95", "pixel AUROC", "AUPRO", "target")


def tables(data: Path) -> dict[str, tuple[str, Table]]:
    category = load_category(data / "glassfiber")
    masks = load_masks(category, (SIZE, SIZE))
    labels = np.array(category.labels)
    rows = []
    for title, weights in (("ImageNet", data / WEIGHTS), ("random weights", None)):
        dfm = _fitted(category, weights, LAYER3)
        target = TARGET if weights is not None else None
        rows.append([f"pydfm, {title}", *_measured(dfm, category, target)])
        rows.append([f"anomalib's formula, {title}", *_anomalib(dfm, category, labels, masks)])
    variants = [
        [title, *_measured(_fitted(category, data / WEIGHTS, parameters), category)[:-1]]
        for title, parameters in VARIANTS.items()
    ]
    return {
        "inspection": ("Two sets, by default", Table(("set", *_HEADER[1:]), _inspection(data))),
        "glassfiber": ("Glass fiber", Table(_HEADER, rows)),
        "glassfiber-variants": ("Other layers, scores and forms", Table(_HEADER[:-1], variants)),
    }


def _inspection(data):
    rows = []
    for name, targets in SETS.items():
        category = load_category(data / name)
        measured = _measured(_fitted(category, data / WEIGHTS, DEFAULT), category)[:-1]
        values = map(float, (measured[1], *measured[5:]))
        found = dict(zip(("AUROC", "pixel AUROC", "AUPRO"), values, strict=True))
        met = all(found[of] >= target for of, target in targets.items())
        told = ", ".join(f"{of} >= {target}" for of, target in targets.items())
        rows.append([name, *measured, verdict(met, told)])
    return rows


def _fitted(category, weights, parameters):
    return DFM(SHARE, weights=weights, image_size=SIZE, **parameters).fit(category.train)


def _measured(dfm, category, target=None):
    metrics = measure_category(dfm, category)
    counts = (len(layer.density.subspaces[0].components) for layer in dfm.model_.layers)
    values = [metrics.image[name] for name in _IMAGE]
    values += [metrics.pixel.get(name) for name in ("pixel_auroc", "aupro")]
    figures = ("" if value is None else f"{value:.3f}" for value in values)
    return [", ".join(map(str, counts)), *figures, _told(metrics.image["auroc"], target)]


def _anomalib(dfm, category, labels, masks):
    """Fit as anomalib defines it: SVD of the centred rows; k is an index, so one too low."""
    train, test = (dfm.extract(paths).astype(float) for paths in (category.train, category.test))
    mean = train.mean(axis=0)
    _, singular, directions = np.linalg.svd(train - mean, full_matrices=False)
    shares = np.cumsum(singular**2) / np.sum(singular**2)
    components = directions[: int(np.argmax(shares >= SHARE))]
    residuals = test - mean - ((test - mean) @ components.T) @ components
    image = evaluate((residuals**2).sum(axis=1), labels)
    grid = dfm.feature_spec_.grids[0]
    maps = grid.enlarge(grid.energies(residuals), (SIZE, SIZE)).astype(np.float32)
    values = [*(image[name] for name in _IMAGE), pixel_auroc(maps, masks), aupro(maps, masks)]
    return [str(len(components)), *(f"{value:.3f}" for value in values), ""]


def _told(auroc, target):
    return "" if target is None else verdict(auroc >= target, f"AUROC >= {target}")
