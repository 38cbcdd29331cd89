import numpy as np
import pytest

from pydfm.reports.drawing.scale import ColourScale, colours, cover, overlay


def test_places_run_from_the_low_end_over_the_middle():
    scale = ColourScale(2.0, 5.0)
    assert scale.high == 8.0
    values = np.array([-1.0, 2.0, 3.5, 5.0, 6.5, 8.0, 99.0, np.nan])
    assert scale.places(values) == pytest.approx([0, 0, 0.25, 0.5, 0.75, 1, 1, 0])


def test_where_good_images_have_one_value_what_is_above_it_is_at_the_end():
    assert ColourScale(0.0, 0.0).places(np.array([-1.0, 0.0, 1e-9])).tolist() == [0, 0, 1]


def test_the_scale_can_be_read_without_colours():
    lightness = colours(np.linspace(0, 1, 50)) @ [0.299, 0.587, 0.114]
    assert (np.diff(lightness) < 0).all()
    assert (np.diff(cover(np.linspace(0, 1, 50))) > 0).all()
    assert cover(np.zeros(1)) == 0


def test_an_overlay_of_nothing_is_the_image():
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert np.array_equal(overlay(pixels, np.zeros((2, 4))), pixels)
    assert not np.array_equal(overlay(pixels, np.ones((2, 4))), pixels)
