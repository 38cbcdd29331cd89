"""Score images with a model that `pydfm export` wrote, by onnxruntime alone: no pydfm, no torch.

python examples/onnx_score.py model.onnx image.png ...
"""

import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def main(model: str, *images: str) -> None:
    """Print the score of each image, and its p-value and verdict where the model decides."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs() if output.name != "map"]
    for path in images:
        image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        found = session.run(names, {"images": np.asarray(image)[None]})
        print(path, *(f"{name}={value[0]:.6g}" for name, value in zip(names, found, strict=True)))


if __name__ == "__main__":
    main(*sys.argv[1:])
