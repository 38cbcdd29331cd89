"""The command ``pydfm diff``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pydfm.cli.command import Command
from pydfm.cli.options import (
    RUNTIME,
    VERDICTS,
    ChangePage,
    Folder,
    Model,
    MovedBackbone,
    MovedWeights,
    load_model,
    say,
)


def diff(
    model: Model,
    other: Annotated[Path, typer.Argument(metavar="OTHER", help="The model to compare with.")],
    folder: Folder,
    report: ChangePage = None,
    weights: MovedWeights = None,
    backbone: MovedBackbone = None,
    **parameters: Any,
) -> None:
    """Compare two models on images: verdicts that changed, thresholds, order of the scores."""
    import numpy as np
    from scipy.stats import spearmanr

    from pydfm.features.inputs.images import list_images
    from pydfm.features.pictures.pages import with_pages
    from pydfm.reports.batch import threshold_text
    from pydfm.reports.page import check_page

    if report is not None:
        check_page(report)
    paths, models, found = with_pages(list_images(folder)), [], []
    for place, path in (("A", model), ("B", other)):
        dfm = load_model(path, weights, backbone, parameters)
        models.append(dfm)
        found.append(dfm.assess(paths))
        say(f"{place}  {path}: {dfm.n_samples_} images, {threshold_text(dfm)}")
    a, b = found
    changed = np.flatnonzero(a.verdicts != b.verdicts)
    read = np.isfinite(a.scores) & np.isfinite(b.scores)
    if read.sum() > 2:
        order = spearmanr(a.scores[read], b.scores[read]).statistic
        say(f"rank correlation of the scores: {order:.3f}")
    done = f"{len(changed)} of {len(paths)} verdicts differ"
    say(done)
    for i in changed:
        verdicts = f"{VERDICTS[int(a.verdicts[i])]} -> {VERDICTS[int(b.verdicts[i])]}"
        each = f"p {a.p_values[i]:.3g} -> {b.p_values[i]:.3g}"
        say(f"{paths[i]}: {verdicts} ({each})")
    if report is not None:
        from pydfm.reports.change import write_change

        names = (f"A, {model}", f"B, {other}")
        title = folder.resolve().name
        done = f"{model.name} beside {other.name}"
        before, after = models
        write_change(before, after, paths, report, title=title, done=done, names=names, judged=a)
        say(f"page  {report}")


COMMAND = Command("diff", diff, order=28, optional={**RUNTIME, "alpha": ""})
