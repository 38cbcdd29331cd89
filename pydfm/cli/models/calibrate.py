"""The command ``pydfm calibrate``."""

from pathlib import Path
from typing import Any

import typer

from pydfm.cli.command import Command
from pydfm.cli.options import (
    RUNTIME,
    Classes,
    Folder,
    Groups,
    Model,
    MovedBackbone,
    MovedWeights,
    NewModel,
    load_model,
    parse_groups,
    threshold_text,
    write_changed,
)


def calibrate(
    model: Model,
    folder: Folder,
    output: NewModel,
    classes: Classes = False,
    groups: Groups = None,
    weights: MovedWeights = None,
    backbone: MovedBackbone = None,
    *,
    alpha: float | None,
    **parameters: Any,
) -> None:
    """Set the thresholds anew by later good images; the model stays as it is."""
    from scipy.stats import binomtest

    from pydfm.features.inputs.images import list_images
    from pydfm.features.pictures.pages import with_pages
    from pydfm.runtime.files import check_output

    check_output(output)
    paths = with_pages(list_images(folder))
    dfm = load_model(model, weights, backbone, parameters)
    if alpha is not None:
        dfm.set_params(alpha=alpha)
    old = threshold_text(dfm)
    found = dfm.recalibrate(
        paths,
        labels=[Path(path).parent.name for path in paths] if classes else None,
        groups=None if groups is None else parse_groups(groups),
    )
    write_changed(dfm, output)
    n = found.n_units
    interval = binomtest(round(found.found * n), n).proportion_ci(0.95, "exact")
    what = "images" if groups is None else "groups"
    typer.echo(
        f"{output}: promised {100 * found.alpha:.3g} % false alarms, found {100 * found.found:.3g} "
        f"% of {n} {what} (95 % interval {100 * interval.low:.3g} to {100 * interval.high:.3g} %, "
        f"p = {found.p_value:.2g})"
    )
    typer.echo(f"before  {old}")
    typer.echo(f"now     {threshold_text(dfm)}")


COMMAND = Command("calibrate", calibrate, order=14, optional={**RUNTIME, "alpha": ""})
