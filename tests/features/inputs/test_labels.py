import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import falling_rows

import pydfm
from pydfm.features.inputs.labels import ClassCodes, RowLabels, as_labels, by_class, find_classes

# Arrays


@pytest.mark.parametrize(
    ("given_labels", "want"),
    [
        ([1, 2], [1, 2]),
        (("a", "bb"), ["a", "bb"]),
        (np.array([1.0, 2.0]), [1, 2]),
        (np.array([[1], [2]]), [1, 2]),
        (np.array([True, False]), [True, False]),
        (np.array(["a", "b"], dtype=object), ["a", "b"]),
        (np.array([1, np.int8(2)], dtype=object), [1, 2]),
        (torch.tensor([3, 4]), [3, 4]),
    ],
)
def test_labels_are_integers_or_strings(given_labels, want):
    labels = as_labels(given_labels)
    assert labels.tolist() == want
    assert labels.dtype.kind in "iubU"


@pytest.mark.parametrize(
    ("given_labels", "error", "says"),
    [
        ([[1, 2], [3, 4]], ValueError, r"labels has the shape \(2, 2\)"),
        ([1.5, 2], ValueError, r"labels has 1\.5; they must be integers or strings"),
        ([np.nan], ValueError, "labels has nan"),
        ([2**63 - 1, 2**70], ValueError, f"labels has {2**70}, which exceeds 64 bits"),
        ([-(2**64)], ValueError, f"labels has -{2**64}, which exceeds 64 bits"),
        ([1e30], ValueError, r"labels has 1e\+30; they must be integers or strings"),
        ([1j], ValueError, "Complex data not supported"),
        ([None, "a"], TypeError, "labels is of the type object"),
        ([[1], [2, 3]], ValueError, "labels cannot be made an array"),
    ],
)
def test_what_is_no_label_is_told(given_labels, error, says):
    with pytest.raises(error, match=says):
        as_labels(given_labels)


# By row


def test_labels_are_taken_by_index_or_slice():
    labels = RowLabels(np.array(["a", "b", "c"]))
    assert labels.take([2, 0]).tolist() == ["c", "a"]
    assert labels.take(slice(1, 3)).tolist() == ["b", "c"]
    labels.check_count(3)
    for places in ([3], slice(2, 4)):
        with pytest.raises(ValueError, match="labels has 3 labels, and X has more rows"):
            labels.take(places)
    with pytest.raises(ValueError, match="labels has 3 labels, and X has 2 rows or images"):
        labels.check_count(2)


@pytest.mark.parametrize("form", [list, tuple, np.array])
@pytest.mark.parametrize("count", [20, 43])
def test_labels_of_another_length_are_refused_in_every_form(form, count):
    labels = form([0] * count)
    dfm = pydfm.DFM(3, alpha=0.1)
    with pytest.raises(ValueError, match=f"labels has {count} labels, and X has"):
        dfm.fit(falling_rows(40, 6), labels=labels)
    dfm.fit(falling_rows(40, 6), labels=[0, 1] * 20)
    for call in (dfm.partial_fit, dfm.score, dfm.predict, dfm.p_value, dfm.drift):
        with pytest.raises(ValueError, match=f"labels has {count} labels, and X has"):
            call(falling_rows(40, 6), labels=labels)


def test_the_list_of_a_loader_grows_as_it_is_read():
    growing = []
    labels = RowLabels.of_loader(growing)
    growing += [1, 2]
    assert labels.take([0, 1]).tolist() == [1, 2]
    growing += [7]
    assert labels.take(slice(2, 3)).tolist() == [7]
    labels.check_count(3)


def test_folders_are_the_classes_of_what_is_in_them(tmp_path):
    names = [str(tmp_path / name) for name in ("a/1.png", "a/b/2.png", "b/1.png")]
    assert RowLabels.of_folders(tmp_path, names).take([0, 1, 2]).tolist() == ["a", "a", "b"]
    with pytest.raises(ValueError, match=r"1\.png' lies in no subfolder of"):
        RowLabels.of_folders(tmp_path, [*names, str(tmp_path / "1.png")])
    for X, some in ((tmp_path, None), (names, names), (tmp_path / "gone", names)):
        with pytest.raises(ValueError, match="needs X to be a folder whose subfolders are the cl"):
            RowLabels.of_folders(X, some)


# By class


def test_classes_are_numbered_as_they_come():
    codes = ClassCodes()
    assert codes.encode(np.array(["b", "b", "a"])).tolist() == [1, 1, 0]  # sorted in one call
    assert codes.encode(np.array(["c", "a"])).tolist() == [2, 0]
    assert codes.find(np.array(["b", "c", "a"])).tolist() == [1, 2, 0]
    assert codes.sorted(np.array([5, 0, 1])) == (["a", "c"], [0, 2])
    other = codes.copy()
    other.encode(np.array(["d"]))
    assert codes.numbers_of(other).tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"labels has 'e', which is none of the classes .*: 'a', "):
        codes.find(np.array(["e"]))


def test_labels_of_two_kinds_are_told():
    codes = ClassCodes()
    codes.encode(np.array(["a"]))
    with pytest.raises(TypeError, match="labels holds numbers and strings; they must be of one k"):
        codes.encode(np.array([1]))


@given(st.lists(st.integers(0, 5), max_size=30))
def test_rows_are_grouped_by_class_in_order(values):
    classes = np.array(values, dtype=np.intp)
    groups = dict(by_class(classes))
    assert sorted(groups) == sorted(set(values))
    for c, places in groups.items():
        assert places.tolist() == [i for i, value in enumerate(values) if value == c]


def test_unknown_classes_are_named():
    classes = np.arange(12)
    assert find_classes(np.array([11, 0]), classes).tolist() == [11, 0]
    with pytest.raises(ValueError, match=r"labels has 12, .*: 0, 1, .*, 9 and 2 others"):
        find_classes(np.array([3, 12]), classes)
    with pytest.raises(ValueError, match="labels has '3'"):
        find_classes(np.array(["3"]), classes)


def test_missing_labels_are_named():
    with pytest.raises(ValueError, match="labels is masked in row 1"):
        as_labels(np.ma.masked_array([1, 2, 3], [False, True, False]))
    with pytest.raises(ValueError, match=r"labels has .* in row 1; give one"):
        as_labels(pd.Series(["a", pd.NA, "b"]))
