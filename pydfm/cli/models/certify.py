"""The command ``pydfm certify``."""

import json
from typing import Annotated

import typer

from pydfm.cli.command import Command
from pydfm.cli.options import Model


def certify(
    model: Model,
    alpha: Annotated[
        float | None, typer.Option(help="The false-alarm rate; default: the model's.")
    ] = None,
    confidence: Annotated[float, typer.Option(help="Probability that the bound holds.")] = 0.95,
    as_json: Annotated[bool, typer.Option("--json", help="Print it for other programs.")] = False,
) -> None:
    """Bound the false-alarm rate of a model's threshold, and say what is proven."""
    from pydfm.conformal.certificate import certify as bound
    from pydfm.io.model_file import read_model
    from pydfm.parameters import DEFAULTS
    from pydfm.stats.scores import check_score_types

    content = read_model(model)
    given = {**DEFAULTS, **content.parameters}
    kind = check_score_types(given["score_type"])[0]
    found = bound(content.fitted, kind, given["alpha"] if alpha is None else alpha, confidence)
    if as_json:
        typer.echo(json.dumps(found.to_dict()))
        return
    for sentence in found.sentences():
        typer.echo(sentence)


COMMAND = Command("certify", certify, order=36)
