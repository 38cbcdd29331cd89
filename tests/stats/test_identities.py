import numpy as np
import pytest

from pydfm.stats import identities as identities_module
from pydfm.stats.identities import Identities


def hashes_of(n, seed=0):
    return np.random.default_rng(seed).integers(0, 2**63, n).astype(np.uint64)


def images_of(identities):
    """Sorted pairs of hash and class."""
    return sorted(
        (int(h), int(c))
        for hashes, own in identities.chunks
        for h, c in zip(hashes, own, strict=True)
    )


def pairs(hashes, classes):
    return sorted(zip(hashes.tolist(), classes.tolist(), strict=True))


def test_images_are_added_merged_and_removed():
    hashes, classes = hashes_of(20), np.arange(20) % 3
    one = Identities().add(hashes[:8], classes[:8]).add(hashes[8:], classes[8:])
    assert one.known
    assert len(one) == 20
    assert images_of(one) == pairs(hashes, classes)
    rest = one.remove(hashes[3:9], classes[3:9])
    assert images_of(rest) == pairs(np.delete(hashes, range(3, 9)), np.delete(classes, range(3, 9)))
    assert len(one) == 20
    numbers = np.array([5, 0, 1])
    both = rest.merge(one, numbers)
    assert images_of(both) == sorted(images_of(rest) + pairs(hashes, numbers[classes]))
    assert images_of(one.remove_class(1)) == pairs(hashes[classes != 1], classes[classes != 1])
    assert len(one.remove(hashes, classes)) == 0


def test_an_image_is_there_as_often_as_it_was_added():
    hashes = hashes_of(3)
    twice = Identities().add(np.append(hashes, hashes[1]), None)
    both = hashes[[1, 1]]
    assert len(twice.remove(both, None)) == 2
    with pytest.raises(ValueError, match="image 2 of X comes more often than the model"):
        twice.remove(hashes[[1, 1, 1]], None)
    with pytest.raises(ValueError, match="image 1 of X is none of those"):
        twice.remove(np.array([hashes[0], 7], dtype=np.uint64), None)
    with pytest.raises(ValueError, match="image 0 of X is none of those"):
        Identities().remove(hashes, None)


def test_the_class_belongs_to_the_image():
    hashes = hashes_of(2)
    one = Identities().add(hashes, np.array([0, 1]))
    with pytest.raises(ValueError, match="image 0 of X is none of those"):
        one.remove(hashes[:1], np.array([1]))


def test_one_that_is_not_known_makes_all_unknown(monkeypatch):
    one = Identities().add(hashes_of(5), None)
    unknown = one.add(None, None)
    assert not unknown.known
    assert len(unknown) == 0
    for other in (
        unknown.add(hashes_of(5), None),
        unknown.merge(one, np.zeros(1, int)),
        one.merge(unknown, np.zeros(1, int)),
        unknown.remove_class(0),
    ):
        assert not other.known
    monkeypatch.setattr(identities_module, "_MOST", 8)
    assert not one.add(hashes_of(4), None).known
    assert not one.merge(one, np.zeros(1, int)).known
