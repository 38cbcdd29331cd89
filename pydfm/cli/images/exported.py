"""Scores of images by an export, ``pydfm score MODEL.onnx``: onnxruntime alone, without torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydfm.cli.options import VERDICTS


def export_columns(
    model: Path, paths: list[str], alpha: float | None, parameters: Mapping[str, Any]
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

    Raises
    ------
    ImageError
        If an image cannot be read, unless these are skipped.
    ValueError
        If an option is given that an export has not, or alpha for a model that does not decide.
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
        if not decides:
            raise ValueError(
                f"--alpha is given, and '{model}' was fitted without calibration and does not "
                "decide; leave it out"
            )
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
            score = f"{found['score'][0]:.6g}"
            row = (score, "", "")
            if decides:
                row = (score, f"{found['p_value'][0]:.6g}", VERDICTS[int(found["verdict"][0])])
        for column, text in zip(columns.values(), row, strict=True):
            column.append(text)
    return columns
