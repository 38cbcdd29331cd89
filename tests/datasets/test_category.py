import pytest
from PIL import Image

from pydfm.datasets import find_categories, is_category, load_category


def tree(root, **counts):
    """Pictures in folders; `__` stands for a slash."""
    for name, count in counts.items():
        folder = root / name.replace("__", "/")
        folder.mkdir(parents=True)
        for i in range(count):
            Image.new("L", (4, 4)).save(folder / f"{i}.png")
    return root


@pytest.fixture
def carpet(tmp_path):
    counts = {"train__good": 3, "test__good": 2, "test__cut": 1, "test__hole": 2}
    return tree(tmp_path / "carpet", **counts, ground_truth__cut=1)


def test_a_category_is_listed_in_order(carpet):
    (carpet / "test" / "notes.txt").touch()
    (carpet / "test" / ".cache").mkdir()
    category = load_category(carpet)
    assert category.name == "carpet"
    assert category.train == [str(carpet / f"train/good/{i}.png") for i in range(3)]
    names = ["cut/0", "good/0", "good/1", "hole/0", "hole/1"]
    assert category.test == [str(carpet / f"test/{name}.png") for name in names]
    assert category.defects == ["cut", "good", "good", "hole", "hole"]
    assert category.labels == [True, False, False, True, True]


def test_a_category_has_the_name_of_its_folder_wherever_one_is(carpet, monkeypatch):
    monkeypatch.chdir(carpet)
    assert load_category(".").name == "carpet"
    assert load_category(str(carpet) + "/").name == "carpet"


def test_pictures_to_fit_on_may_lie_elsewhere(tmp_path):
    category = load_category(tree(tmp_path, test__good=1, test__cut=1))
    assert category.train == []
    assert len(category.test) == 2


def test_the_layout_is_known(carpet, tmp_path):
    assert is_category(carpet)
    assert is_category(str(carpet))
    assert not is_category(carpet / "train")
    assert not is_category(tmp_path / "gone")
    assert not is_category(tree(tmp_path / "a", test__good=1))
    assert not is_category(tree(tmp_path / "b", train__good=1))


@pytest.mark.parametrize(
    ("counts", "error", "says"),
    [
        (None, FileNotFoundError, "there is no folder '.*x'"),
        ({"good": 1}, FileNotFoundError, "has no folder 'test'; a category has train/good"),
        ({"test__cut": 1}, ValueError, "has no normal images in 'good'"),
        ({"test__good": 1}, ValueError, "has no images of defects"),
        ({"test": 2}, ValueError, "has no normal images in 'good'"),
        ({"test__good": 1, "test__cut": 0}, ValueError, "'.*cut' holds no images"),
        ({"test__good": 0, "test__cut": 1}, ValueError, "'.*good' holds no images"),
    ],
)
def test_what_a_category_lacks_is_reported(tmp_path, counts, error, says):
    if counts is not None:
        tree(tmp_path / "x", **counts)
    with pytest.raises(error, match=says):
        load_category(tmp_path / "x")


def test_categories_are_found_at_any_depth(tmp_path):
    for name in ("a/b", "a/c", "d"):
        tree(tmp_path / name, train__good=1, test__good=1, test__cut=1)
    tree(tmp_path, e__train=0, license=0)
    (tmp_path / ".hidden" / "test").mkdir(parents=True)
    expected = [tmp_path / "a" / "b", tmp_path / "a" / "c", tmp_path / "d", tmp_path / "e"]
    assert find_categories(tmp_path) == [str(path) for path in expected]
    assert find_categories(tmp_path / "d") == [str(tmp_path / "d")]


def test_no_categories_are_reported(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder below .* has a 'train' or a 'test'"):
        find_categories(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        find_categories(tmp_path / "nothing")


def test_pages_are_images_of_their_own_and_have_the_pages_of_their_masks(carpet):
    def save(path, n):
        pages = [Image.new("L", (4, 4), 9 * i) for i in range(n)]
        pages[0].save(path, save_all=True, append_images=pages[1:])
        return [str(path)] if n == 1 else [f"{path}#{i}" for i in range(1, n + 1)]

    train = save(carpet / "train/good/x.tif", 2)
    good = save(carpet / "test/good/x.tif", 2)
    cut = save(carpet / "test/cut/x.tif", 3)
    other = save(carpet / "test/cut/y.tif", 2)
    single = save(carpet / "test/cut/z.tif", 1)
    masks = save(carpet / "ground_truth/cut/x_mask.tif", 3)
    (shared,) = save(carpet / "ground_truth/cut/y_mask.tif", 1)
    several = save(carpet / "ground_truth/cut/z_mask.tif", 2)
    category = load_category(carpet)
    assert category.train[-2:] == train
    of = dict(zip(category.test, category.masks, strict=True))
    kinds = dict(zip(category.test, category.defects, strict=True))
    assert {kinds[page] for page in good} == {"good"}
    assert {kinds[page] for page in cut} == {"cut"}
    assert [of[page] for page in cut] == [[mask] for mask in masks]
    assert [of[page] for page in other] == [[shared]] * 2
    assert [of[page] for page in single] == [several]
