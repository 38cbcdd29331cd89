import sys

import numpy as np
import pytest

from pydfm.datasets import load_demo


@pytest.mark.parametrize("size", [16, 96, 128])
def test_the_demo_has_squares_of_the_size_asked_for(size):
    demo = load_demo(size)
    steps = [(length - size) // (size // 3) + 1 for length in (512, 384, 128)]
    assert len(demo.train) == steps[0] * steps[1]
    assert len(demo.test) == len(demo.kinds) == 4 * steps[0] * steps[2]
    assert {picture.size for picture in [*demo.train, *demo.test]} == {(size, size)}
    assert {picture.mode for picture in [*demo.train, *demo.test]} == {"L"}


def test_the_demo_has_as_many_of_each_kind():
    demo = load_demo()
    kinds, counts = np.unique(demo.kinds, return_counts=True)
    assert kinds.tolist() == ["brick", "brick with stone", "grass", "gravel"]
    assert len(set(counts)) == 1
    assert demo.labels == [kind != "brick" for kind in demo.kinds]


def test_no_pixel_is_in_the_fit_and_in_the_test(monkeypatch):
    # The four quarters of these photographs have values that no other quarter has.
    import skimage.data

    for i, name in enumerate(("brick", "grass", "gravel")):
        columns = np.uint8(np.arange(512) // 128 + 4 * i)
        monkeypatch.setattr(
            skimage.data, name, lambda columns=columns: np.broadcast_to(columns, (512, 512)).copy()
        )
    demo = load_demo(30)
    train = {value for picture in demo.train for value in np.unique(picture)}
    assert train == {0, 1, 2}
    tests = {kind: set() for kind in demo.kinds}
    for picture, kind in zip(demo.test, demo.kinds, strict=True):
        tests[kind].update(np.unique(picture))
    assert tests == {"brick": {3}, "grass": {7}, "gravel": {11}, "brick with stone": {3, 8}}


def test_the_stone_is_small_and_in_the_middle():
    demo = load_demo(96)
    brick, stone = (
        [np.asarray(p) for p, k in zip(demo.test, demo.kinds, strict=True) if k == kind]
        for kind in ("brick", "brick with stone")
    )
    for before, after in zip(brick, stone, strict=True):
        changed = before != after
        assert changed[40:56, 40:56].mean() > 0.9
        changed[40:56, 40:56] = False
        assert not changed.any()


def test_the_demo_is_the_same_every_time():
    first, second = load_demo(48), load_demo(48)
    assert first.kinds == second.kinds
    for a, b in zip(first.train + first.test, second.train + second.test, strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("size", [0, 5, -3, 129, 2.5, None])
def test_a_size_out_of_range_is_reported(size):
    with pytest.raises(ValueError, match=r"^size is .* must be"):
        load_demo(size)


def test_the_demo_names_the_extra_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(ImportError, match=r"the demo needs scikit-image; .* '\.\[demo\]'"):
        load_demo()
