"""The command ``pydfm audit``."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from pydfm.cli.command import Command
from pydfm.cli.options import Fdr, Groups, parse_groups, say
from pydfm.runtime.text import printable


def audit(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER|MODEL",
            help="Good images, before a fit; or a model file, for those that it was fitted on.",
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="HTML file to write, with pictures.")
    ] = None,
    fdr: Fdr = None,
    classes: Annotated[
        bool, typer.Option("--classes", help="The subfolders of FOLDER are classes.")
    ] = False,
    groups: Groups = None,
    **parameters: Any,
) -> None:
    """Say what is wrong with good images: odd ones out, copies, files that differ."""
    from pydfm.conformal.checks.outliers import FDR
    from pydfm.estimator import DFM
    from pydfm.features.inputs.images import extensions
    from pydfm.io.model_file import read_model
    from pydfm.reports.audit import audit_text, write_audit
    from pydfm.reports.batch import describe
    from pydfm.reports.page import check_page

    if output is not None:
        check_page(output)
    rate = FDR if fdr is None else fdr
    if folder.is_file() and folder.suffix.lower() not in extensions():
        content = read_model(folder)
        dfm = DFM(**content.parameters).with_state(fitted=content.fitted)
        found = dfm.audit(fdr=rate)
        details = describe(dfm, os.fspath(folder)) if dfm.feature_spec_ is not None else []
    else:
        dfm = DFM(**parameters, verbose=True)
        labels, parts = "folders" if classes else None, parse_groups(groups)
        found = dfm.audit(folder, labels=labels, groups=parts, fdr=rate)
        details = [("Network", f"{dfm.backbone}, {dfm.weights}")]
    for line in audit_text(found):
        say(line)
    if output is not None:
        title = folder.resolve().name
        write_audit(found, output, title=title, details=[(a, printable(b)) for a, b in details])
        say(f"page        {output}")


COMMAND = Command("audit", audit, order=27, roles=("features", "model", "decision", "runtime"))
