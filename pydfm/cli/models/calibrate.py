"""The command ``pydfm calibrate``."""

from typing import Annotated, Any

import typer

from pydfm.cli.command import Command
from pydfm.cli.options import (
    RUNTIME,
    ChangePage,
    Classes,
    Folder,
    Groups,
    Model,
    MovedBackbone,
    MovedWeights,
    NewModel,
    check_written,
    labels_of,
    load_model,
    open_change,
    parse_groups,
    write_changed,
)


def calibrate(
    model: Model,
    folder: Folder,
    output: NewModel,
    classes: Classes = False,
    groups: Groups = None,
    extend: Annotated[
        bool,
        typer.Option(
            "--extend",
            help="Keep the calibration sample that there is, and add to it.",
        ),
    ] = False,
    report: ChangePage = None,
    weights: MovedWeights = None,
    backbone: MovedBackbone = None,
    **parameters: Any,
) -> None:
    """Set the thresholds anew by later good images; the model stays as it is."""
    from scipy.stats import binomtest

    from pydfm.features.inputs.images import list_images
    from pydfm.features.pictures.pages import with_pages

    state = check_written(output, report)
    paths = with_pages(list_images(folder))
    dfm = load_model(model, weights, backbone, parameters)
    before, labels = open_change(dfm, report), labels_of(folder, paths, classes)
    found = dfm.recalibrate(paths, labels=labels, groups=parse_groups(groups), extend=extend)
    n = found.n_units
    interval = binomtest(round(found.found * n), n).proportion_ci(0.95, "exact")
    what = ("image" if groups is None else "group") + ("s" if n > 1 else "")
    done = (
        f"promised {100 * found.alpha:.3g} % false alarms, found {100 * found.found:.3g} % of {n} "
        f"{what} (95 % interval {100 * interval.low:.3g} to {100 * interval.high:.3g} %, "
        f"p = {found.p_value:.2g})"
    )
    note = "Thresholds come from these very images now."
    write_changed(before, dfm, output, state, done, paths, report, note)


COMMAND = Command("calibrate", calibrate, order=14, optional={**RUNTIME, "alpha": ""})
