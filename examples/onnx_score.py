"""Score images by onnxruntime alone: python examples/onnx_score.py model.onnx image.png ..."""

import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def main(model: str, *images: str) -> None:
    """Print the score of each image, and its p-value and verdict where the model decides."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs() if output.name != "map"]
    for path in images:
        image = ImageOps.exif_transpose(Image.open(path))
        if image.mode[0] in "IF":  # Pillow would cut off what is above 255
            sys.exit(f"'{path}' has more than 8 bits, and an export takes 8")
        values = session.run(names, {"images": np.asarray(image.convert("RGB"))[None]})
        found = {name: f"{own[0]:.6g}" for name, own in zip(names, values, strict=True)}
        if "verdict" in found:
            found["verdict"] = "anomalous" if found["verdict"] == "-1" else "ok"
        print(path, *(f"{name}={text}" for name, text in found.items()))


if __name__ == "__main__":
    main(*sys.argv[1:])
