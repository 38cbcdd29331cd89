import numpy as np
import pytest
from PIL import Image, ImageFilter

from pydfm.features.pictures.facts import Facts, near_equal


def picture(seed=0, size=(64, 48)):
    noise = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.NEAREST)


def test_facts_of_an_image():
    levels = np.zeros((40, 60), dtype=np.uint8)
    levels[:, 30:] = 255
    facts = Facts.of(Image.fromarray(levels), "I;16")
    assert (facts.size, facts.mode) == ((40, 60), "I;16")
    assert (facts.brightness, facts.contrast) == (0.5, 0.5)
    assert facts.thumb.shape == (16, 16)
    assert facts.thumb[:, :7].max() == 0
    assert facts.thumb[:, 9:].min() == 255


def test_a_blur_lowers_the_sharpness():
    sharp = picture()
    blurred = sharp.filter(ImageFilter.GaussianBlur(3))
    assert Facts.of(blurred, "RGB").sharpness < 0.3 * Facts.of(sharp, "RGB").sharpness
    assert Facts.of(Image.new("L", (9, 9), 7), "L").sharpness == 0
    assert Facts.of(Image.new("L", (1, 1), 7), "L").sharpness == 0


def test_the_digest_is_of_all_pixels_and_the_size():
    one, again = Facts.of(picture(), "RGB"), Facts.of(picture(), "RGB")
    assert one.digest == again.digest
    changed = picture()
    changed.putpixel((5, 5), (1, 2, 3))
    digests = {one.digest, Facts.of(changed, "RGB").digest}
    digests.add(Facts.of(Image.new("L", (4, 2)), "L").digest)
    digests.add(Facts.of(Image.new("L", (2, 4)), "L").digest)
    assert len(digests) == 4


def test_near_equal_images_are_found_whatever_is_common_to_all():
    base = picture(99)
    pictures = [Image.blend(base, picture(i), 0.4) for i in range(20)]
    pictures.append(pictures[4].resize((128, 96)).resize((64, 48)))
    thumbs = np.stack([Facts.of(one, "RGB").thumb for one in pictures])
    assert near_equal(thumbs).tolist() == [[4, 20]]
    assert near_equal(thumbs[:2]).shape == (0, 2)


@pytest.mark.parametrize("level", [0, 100])
def test_plain_images_are_not_called_equal(level):
    """Nothing tells one from another, but for a grey level each: they have nothing to compare."""
    thumbs = np.full((5, 16, 16), level, dtype=np.float32)
    assert len(near_equal(thumbs)) == 0
