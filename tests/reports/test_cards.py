import numpy as np
import pytest

from pydfm.reports.cards import _simple, place_in_words


@pytest.mark.parametrize(
    ("point", "words"),
    [
        ((0, 0), "near the upper left"),
        ((50, 0), "near the top"),
        ((99, 10), "near the upper right"),
        ((10, 100), "near the left"),
        ((50, 100), "near the centre"),
        ((99.9, 100), "near the right"),
        ((100, 200), "near the lower right"),
        ((50, 199), "near the bottom"),
        ((0, 199), "near the lower left"),
    ],
)
def test_places_have_words(point, words):
    assert place_in_words(point, (200, 100)) == words


def test_outlines_are_simplified_within_the_tolerance():
    angles = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    circle = 100 + 50 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    simple = _simple(circle, 1.0)
    assert 10 < len(simple) < 40
    ends = np.roll(simple, -1, axis=0) - simple
    for point in circle:
        share = ((point - simple) * ends).sum(axis=1) / np.square(ends).sum(axis=1)
        nearest = simple + share.clip(0, 1)[:, None] * ends
        assert np.hypot(*(point - nearest).T).min() <= 1.0 + 1e-9
    square = np.array([[0, 0], [5, 0], [10, 0], [10, 10], [0, 10]], dtype=float)
    assert _simple(square, 0.5).tolist() == [[0, 0], [10, 0], [10, 10], [0, 10]]
