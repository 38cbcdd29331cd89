import numpy as np
import pytest
from PIL import Image

from pydfm.reports.demo import DemoFigure


@pytest.mark.parametrize(
    ("name", "start"), [("x.PDF", b"%PDF"), ("x.svg", b"<?xml"), ("plain", b"\x89PNG")]
)
def test_the_figure_has_the_format_of_its_name(tmp_path, name, start):
    levels = [10, 60, 120, 200]
    images = [Image.new("L", (8, 8), level) for level in levels]
    scores = np.float32([1, 2, 30, 40])
    figure = DemoFigure(tmp_path / name)
    figure.write(images, ["good", "good", "bad", "bad"], scores, 1.0)
    assert (tmp_path / name).read_bytes().startswith(start)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_cannot_be_written_is_reported_before_any_work(tmp_path):
    with pytest.raises(ValueError, match=r"x\.xyz' cannot be written as xyz; its extension must"):
        DemoFigure(tmp_path / "x.xyz")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        DemoFigure(tmp_path / "gone" / "x.png")
