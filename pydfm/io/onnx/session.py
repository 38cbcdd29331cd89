"""A graph that `pydfm.io.onnx.export` wrote, in onnxruntime. Torch is not imported."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pydfm.features.inputs.images import ImageError, read_image
from pydfm.features.onnx.network import open_session
from pydfm.features.pictures.intensity import is_deep
from pydfm.features.pictures.orientation import upright
from pydfm.features.transforms import as_8_bit
from pydfm.runtime.threads import resolve_threads


class OnnxModel:
    """An exported model, ready to score images.

    Parameters
    ----------
    path : path
    n_threads : int, optional
        Threads of one run; default all cores that this process may use.

    Attributes
    ----------
    outputs : tuple of str
        What it gives: "score", and as the model has them "p_value", "verdict" and "map".
    metadata : dict of str to str
        What the file says of the model.
    about : dict
        That of it which is an object of JSON, under "pydfm".

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ImportError
        If onnxruntime is not installed.
    ValueError
        If it is not a graph that pydfm exported.
    """

    def __init__(self, path: "str | os.PathLike[str]", n_threads: int | None = None) -> None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no file '{os.fspath(path)}'")
        check_onnxruntime()
        n_threads = resolve_threads(n_threads)
        try:
            self._session = open_session(os.fspath(path), n_threads)
        except Exception as error:  # onnxruntime's have no common class
            reason = str(error).splitlines()[0]
            raise ValueError(f"'{os.fspath(path)}' is no graph of ONNX ({reason})") from error
        self.metadata = dict(self._session.get_modelmeta().custom_metadata_map)
        try:
            self.about = json.loads(self.metadata["pydfm"])
            self.outputs = tuple(map(str, self.about["outputs"]))
            inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
            names = {one.name for one in (*inputs, *outputs)}
            known = {"images", "score", *self.outputs} <= names
        except (KeyError, TypeError, ValueError):
            known = False
        if not known:
            raise ValueError(
                f"'{os.fspath(path)}' is a graph of ONNX, but no export of pydfm; give one that "
                "`pydfm export` wrote"
            )

    def run(self, images: NDArray[np.uint8], alpha: float | None = None) -> dict[str, NDArray[Any]]:
        """Return what the model says of images (N, H, W, 3), uint8, by the names of `outputs`."""
        given: dict[str, Any] = {"images": images}
        if alpha is not None and "verdict" in self.outputs:
            given["alpha"] = np.array(alpha, dtype=np.float64)
        return dict(zip(self.outputs, self._session.run(list(self.outputs), given), strict=True))


def check_onnxruntime() -> None:
    """Raise ImportError, with how to get it, where onnxruntime is not installed."""
    try:
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "an export is scored by onnxruntime, which is not installed; install it with `pip "
            "install onnxruntime`"
        ) from error


def read_pixels(path: "str | os.PathLike[str]", max_pixels: int | None = None) -> NDArray[np.uint8]:
    """Return an image file as an export takes it: (H, W, 3), uint8, upright, RGB.

    Raises
    ------
    ImageError
        If it cannot be read, or has more than 8 bits.
    """
    try:
        pixels: NDArray[np.uint8] = read_image(os.fspath(path), _as_rgb, max_pixels)
    except ImageError as error:
        raise ImageError(f"cannot read image '{os.fspath(path)}': {error}") from error
    return pixels


def _as_rgb(image: Any) -> NDArray[np.uint8]:
    if not isinstance(image, Image.Image) or is_deep(image):
        raise ValueError("it has more than 8 bits, and an export takes 8; save it with 8 bits")
    return np.asarray(as_8_bit(upright(image)).convert("RGB"))
