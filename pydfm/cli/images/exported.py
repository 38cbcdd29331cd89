"""Scores of images by an export, ``pydfm score MODEL.onnx``: onnxruntime alone, without torch."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydfm.cli.options import VERDICTS

_ROUNDING: Final = 1e-9


def export_columns(
    model: Path,
    paths: list[str],
    alpha: float | None,
    parameters: Mapping[str, Any],
    *,
    to_decide: bool,
) -> dict[str, list[str]]:
    """Return the texts of each column of the table.

    Parameters
    ----------
    model : Path
        What `pydfm export` wrote.
    paths : list of str
    alpha : float or None
        In place of the model's false-alarm rate.
    parameters : mapping
        Options of the command, None where they are not given.
    to_decide : bool
        Whether the verdicts are needed, as `--fail-on` does.

    Raises
    ------
    ImageError
        If an image cannot be read, unless these are skipped.
    ValueError
        If an option is given that an export has not, or one that needs verdicts for a model that
        does not decide.
    """
    from pydfm.features.inputs.images import ImageError
    from pydfm.io.onnx.session import OnnxModel, read_pixels
    from pydfm.runtime.checks import check_share

    for name in ("device", "batch_size", "runtime"):
        if parameters.get(name) is not None:
            raise ValueError(
                f"--{name.replace('_', '-')} is given, and '{model}' is an export, which runs in "
                "onnxruntime, image by image; leave it out"
            )
    exported = OnnxModel(model, parameters["n_threads"])
    decides = "verdict" in exported.outputs
    if alpha is not None:
        check_share("alpha", alpha)
    for option, given in (("--alpha", alpha is not None), ("--fail-on", to_decide)):
        if given and not decides:
            raise ValueError(
                f"{option} is given, and '{model}' was fitted without calibration and does not "
                "decide; leave it out, or export a model fitted with --calibration loo"
            )
    if decides:
        _warn_of_level(exported.about, alpha)
    columns: dict[str, list[str]] = {"score": [], "p_value": [], "verdict": []}
    for path in paths:
        try:
            pixels = read_pixels(path, parameters["max_pixels"])
        except ImageError:
            if parameters["on_error"] != "skip":
                raise
            row = ("nan", "nan", VERDICTS[0])
        else:
            found = exported.run(pixels[None], alpha)
            score = f"{found['score'][0]:.9g}"
            row = (score, "", "")
            if decides:
                row = (score, f"{found['p_value'][0]:.6g}", VERDICTS[int(found["verdict"][0])])
        for column, text in zip(columns.values(), row, strict=True):
            column.append(text)
    return columns


def _warn_of_level(about: Mapping[str, Any], alpha: float | None) -> None:
    """Warn of a level that is smaller than any p-value, where the file tells the smallest."""
    level, smallest = about.get("alpha") if alpha is None else alpha, about.get("smallest_alpha")
    if level is not None and smallest is not None and level * (1 + _ROUNDING) < smallest:
        warnings.warn(
            f"alpha is {level:.6g}, and the model has too few held-out images for p-values below "
            f"{smallest:.3g}: that level is used; export a model of more images",
            stacklevel=3,
        )
