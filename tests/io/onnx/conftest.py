import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Images of odd sizes, grey and with alpha too."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    base = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    for i in range(14):
        pixels = np.asarray(base.resize((70 + i, 60 + 2 * i), Image.Resampling.BICUBIC))
        pixels = (pixels + rng.integers(-40, 40, pixels.shape)).clip(0, 255).astype(np.uint8)
        image = Image.fromarray(pixels).convert({3: "L", 5: "RGBA", 12: "L"}.get(i, "RGB"))
        image.save(folder / f"{i:02}.png")
    return [str(path) for path in sorted(folder.iterdir())]
