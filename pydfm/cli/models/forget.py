"""The command ``pydfm forget``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pydfm.cli.command import Command
from pydfm.cli.options import (
    RUNTIME,
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
    weights: MovedWeights = None,
    backbone: MovedBackbone = None,
    **parameters: Any,
) -> None:
    """Take images out of a model: exactly as if it had been fitted without them."""
    from pydfm.features.inputs.images import list_images
    from pydfm.features.pictures.pages import with_pages
    from pydfm.runtime.files import check_output

    check_output(output)
    paths = [path for given in images for path in with_pages(list_images(given))]
    dfm = load_model(model, weights, backbone, parameters)
    before, old = dfm.n_samples_, threshold_text(dfm)
    dfm.forget(
        paths,
        labels=[Path(path).parent.name for path in paths] if classes else None,
        groups=parse_groups(groups),
    )
    write_changed(dfm, output, f"{before - dfm.n_samples_} of {before} images forgotten", old)


COMMAND = Command("forget", forget, order=13, optional=RUNTIME)
