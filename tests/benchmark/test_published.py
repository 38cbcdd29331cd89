from statistics import mean

import pytest

from pydfm.benchmark.published import find_figures, published


@pytest.mark.parametrize("place", range(8))
def test_categories_average_to_the_published_average(place):
    table = published()["tables"][place]
    key = (table["backbone"], table["edition"], table["metric"])
    known_error = key == ("wide_resnet50_2", "old", "f1_max")
    figures = find_figures(*key)
    assert len(figures) == 15
    assert (abs(mean(figures.values()) - table["average"]) < 6e-4) != known_error


def test_what_was_not_published_has_no_figures():
    assert find_figures("resnet18", "current", "aupr") == {}
    assert len(published()["tables"]) == 8
