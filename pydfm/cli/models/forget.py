"""The command ``pydfm forget``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pydfm.cli.command import Command
from pydfm.cli.options import (
    RUNTIME,
    ChangePage,
    Groups,
    Model,
    MovedBackbone,
    MovedWeights,
    NewModel,
    check_written,
    load_model,
    open_change,
    parse_groups,
    write_changed,
)


def forget(
    model: Model,
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGES", help="The images, or folders of them; found by content."),
    ],
    output: NewModel,
    classes: Annotated[
        bool, typer.Option("--classes", help="The folders of the images are their classes.")
    ] = False,
    groups: Groups = None,
    report: ChangePage = None,
    weights: MovedWeights = None,
    backbone: MovedBackbone = None,
    **parameters: Any,
) -> None:
    """Take images out of a model: exactly as if it had been fitted without them."""
    from pydfm.features.inputs.images import list_images
    from pydfm.features.pictures.pages import with_pages

    state = check_written(output, report)
    paths = [path for given in images for path in with_pages(list_images(given))]
    dfm = load_model(model, weights, backbone, parameters)
    before = open_change(dfm, report)
    dfm.forget(
        paths,
        labels=[Path(path).parent.name for path in paths] if classes else None,
        groups=parse_groups(groups),
    )
    forgotten = before.n_samples_ - dfm.n_samples_
    write_changed(
        before,
        dfm,
        output,
        state,
        f"{forgotten} of {before.n_samples_} images forgotten",
        paths,
        report,
        "They are those that were forgotten: before, the model knew them.",
    )


COMMAND = Command("forget", forget, order=13, optional=RUNTIME)
