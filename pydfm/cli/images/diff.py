"""The command ``pydfm diff``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pydfm.cli.command import Command
from pydfm.cli.options import (
    RUNTIME,
    Folder,
    Model,
    MovedBackbone,
    MovedWeights,
    load_model,
    say,
    threshold_text,
)

_WORDS = {1: "normal", -1: "anomalous", 0: "skipped"}


def diff(
    model: Model,
    other: Annotated[Path, typer.Argument(metavar="OTHER", help="The model to compare with.")],
    folder: Folder,
    weights: MovedWeights = None,
    backbone: MovedBackbone = None,
    **parameters: Any,
) -> None:
    """Compare two models on images: verdicts that changed, thresholds, order of the scores."""
    import numpy as np
    from scipy.stats import spearmanr

    from pydfm.features.inputs.images import list_images
    from pydfm.features.pictures.pages import with_pages

    paths = with_pages(list_images(folder))
    found = []
    for place, path in (("A", model), ("B", other)):
        dfm = load_model(path, weights, backbone, parameters)
        found.append(dfm.assess(paths))
        say(f"{place}  {path}: {dfm.n_samples_} images, {threshold_text(dfm)}")
    a, b = found
    changed = np.flatnonzero(a.verdicts != b.verdicts)
    read = np.isfinite(a.scores) & np.isfinite(b.scores)
    if read.sum() > 2:
        order = spearmanr(a.scores[read], b.scores[read]).statistic
        say(f"rank correlation of the scores: {order:.3f}")
    say(f"{len(changed)} of {len(paths)} verdicts differ")
    for i in changed:
        verdicts = f"{_WORDS[int(a.verdicts[i])]} -> {_WORDS[int(b.verdicts[i])]}"
        each = f"p {a.p_values[i]:.3g} -> {b.p_values[i]:.3g}"
        say(f"{paths[i]}: {verdicts} ({each})")


COMMAND = Command("diff", diff, order=28, optional={**RUNTIME, "alpha": ""})
