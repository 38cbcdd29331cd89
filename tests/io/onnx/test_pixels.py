"""The pixels of an export are those that pydfm gives its networks, to the level."""

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from pydfm.features.inputs.images import read_image
from pydfm.features.onnx.export import exported
from pydfm.features.onnx.network import open_session
from pydfm.features.transforms import Preprocessing
from pydfm.io.onnx.pixels import Pixels
from pydfm.io.onnx.session import read_pixels

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

# A side that stays, squares, longer sides, and crops within images and around them.
SIZES = [((32, 32), None), ((48, 20), None), (40, (32, 32)), (20, (32, 24))]
MODES = ("RGB", "L", "RGBA", "LA", "P", "CMYK")


def preprocessing(resize, crop):
    return Preprocessing(resize, crop, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), None)


def sizes(own, n):
    """Sizes of images: some of one pixel, some whose sides stay, some in Pillow's tall order."""
    height, width = own.size
    rng = np.random.default_rng(0)
    fixed = [(1, 1), (height, width), (height, 3 * width), (3 * height, width), (2, 211), (211, 2)]
    return [*fixed, (260, 100), *map(tuple, rng.integers(1, 130, (n, 2)).tolist())]


@pytest.mark.parametrize(("resize", "crop"), SIZES)
def test_they_are_those_of_every_image_of_any_size(resize, crop, tmp_path):
    """In torch and in onnxruntime, from one graph, for files as `pydfm score` reads them."""
    own = preprocessing(resize, crop)
    module, rng = Pixels(own).eval(), np.random.default_rng(1)
    graph = exported(
        module,
        (torch.zeros((2, 35, 37, 3), dtype=torch.uint8),),
        inputs={"images": {0: "n", 1: "height", 2: "width"}},
        outputs={"pixels": {0: "n"}},
    )
    nodes = onnx.load_from_string(graph).graph.node
    # Not all runtimes have the parts of a graph that a condition chooses, or have them right; and
    # onnxruntime before 1.24 takes a transposition into a product, which it lacks in float64.
    assert not any(part.g.node for node in nodes for part in node.attribute)
    transposed = {name for node in nodes if node.op_type == "Transpose" for name in node.output}
    assert not any(transposed & {*node.input} for node in nodes if node.op_type == "MatMul")
    session = open_session(graph, 1)
    file, orders = tmp_path / "image.tif", set()
    for i, (height, width) in enumerate(sizes(own, 60)):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 4), dtype=np.uint8))
        image.convert("RGB" if i % 6 > 3 else "RGBA").convert(MODES[i % 6]).save(file)
        want = read_image(str(file), own.from_pil)
        given = read_pixels(file)[None].copy()
        with torch.no_grad():
            got = module(torch.from_numpy(given))[0].numpy()
        assert np.array_equal(np.rint(255 * got), want), (height, width)
        (got,) = session.run(None, {"images": given})
        assert np.array_equal(np.rint(255 * got[0]), want), (height, width)
        new = own._resized(height, width)
        orders.add(height - new[0] > max(2 * (width - new[1]), 0))
    assert orders == {True, False}


@pytest.mark.parametrize(
    ("pillow", "size", "down_first"),
    [
        ("10.3.0", (3000, 20), False),
        ("12.1.9", (3000, 20), False),
        ("12.2.0", (2001, 20), True),
        ("12.3.0", (2000, 20), False),
        ("13.0.0", (2000, 20), True),
        ("13.1.0", (64, 48), False),
        ("14.0.0.dev0", (65, 48), True),
        ("13.0.0", (30, 12), False),  # it becomes higher
    ],
)
def test_passes_are_in_the_order_of_each_pillow(pillow, size, down_first):
    """Pillow's own order, made of two of its resizes of one side each, which no version orders."""
    own = preprocessing((32, 32), None)
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    first = (size[1], 32) if down_first else (32, size[0])
    between = Image.fromarray(image).resize(first, Image.Resampling.BILINEAR)
    want = np.asarray(between.resize((32, 32), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    with torch.no_grad():
        got = 255 * Pixels(own, pillow)(torch.from_numpy(image)[None])[0].numpy()
    assert np.array_equal(np.rint(got), want)
    if pillow == PIL.__version__:
        assert np.array_equal(own.from_pil(Image.fromarray(image)), want)
