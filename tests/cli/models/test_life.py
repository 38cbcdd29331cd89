"""Commands by which a model goes on: info, add, forget, calibrate, merge, diff, undo."""

import json
import shutil
import warnings

import numpy as np
import pytest
from command_line import OPTIONS, assert_error, names
from PIL import Image

import pydfm
from pydfm.cli.options import labels_of


@pytest.fixture
def later(tmp_path):
    """Three more pictures."""
    folder = tmp_path / "later"
    folder.mkdir()
    rng = np.random.default_rng(7)
    for i in range(3):
        pixels = rng.integers(0, 256, (48, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"later{i}.png")
    return folder


@pytest.fixture(scope="module")
def kept(script, picture_folder, tmp_path_factory):
    """A model file that keeps its training state."""
    path = tmp_path_factory.mktemp("kept") / "model.pydfm"
    dfm = pydfm.DFM(3, backbone=script, image_size=40, device="cpu", n_threads=2, alpha=0.1)
    dfm.fit(picture_folder).save(path, keep=True)
    return path


@pytest.fixture
def own(kept, tmp_path):
    """A copy of the model's file."""
    path = tmp_path / "own.pydfm"
    shutil.copy(kept, path)
    return path


def load(path, script):
    return pydfm.load(path, backbone=script, device="cpu")


def test_added_images_are_as_if_they_had_been_fitted(run, own, later, script, picture_folder):
    want = load(own, script).partial_fit(later)
    got = run("add", own, later, "-o", own)
    assert (got.code, got.err) == (0, "")
    assert b"own.pydfm: 3 images added to " in got.out
    after = load(own, script)
    assert np.array_equal(after.score(picture_folder), want.score(picture_folder))
    assert [step.what for step in after.journal_] == ["fit", "add"]


def test_what_was_added_is_forgotten_and_undone(run, own, later, script, picture_folder):
    before = own.read_bytes()
    count = load(own, script).n_samples_
    assert run("add", own, later, "-o", own).code == 0
    added = own.read_bytes()
    got = run("forget", own, later, "-o", own)
    assert got.code == 0, got.err
    assert f"3 of {count + 3} images forgotten".encode() in got.out
    forgotten = load(own, script)
    np.testing.assert_allclose(
        forgotten.score(picture_folder), pydfm.load(own, backbone=script).score(picture_folder)
    )
    assert forgotten.n_samples_ == count
    assert run("undo", own).code == 0
    assert own.read_bytes() == added
    assert b"images, forget of " in run("undo", own).out
    assert own.read_bytes() != added
    assert own.read_bytes() != before
    assert names(own.parent) == ["later", "own.pydfm", "own.pydfm.previous"]


def test_an_image_that_is_not_in_the_model_is_refused(run, own, later, kept):
    says = r"image '.*later0.png' is none of those the model was fitted on"
    assert_error(run("forget", own, later, "-o", own), says)
    assert own.read_bytes() == kept.read_bytes()
    assert not own.with_name("own.pydfm.previous").exists()


def test_there_must_be_something_to_undo(run, own):
    assert_error(run("undo", own), r"there is no '.*own.pydfm.previous', .* cannot be undone")
    assert_error(run("undo", own.with_name("none.pydfm")), r"there is no file '.*none.pydfm'")
    own.with_name("own.pydfm.previous").write_bytes(b"nothing")
    before = own.read_bytes()
    assert_error(run("undo", own), "not a model file of pydfm")
    assert own.read_bytes() == before


def test_marks_of_a_page_choose_what_is_added(run, own, later, script, tmp_path):
    marks = tmp_path / "marks.csv"
    marks.write_text(
        "path,mark,verdict,score,p_value\nlater0.png,good,anomalous,1,0.1\n"
        f"{later / 'later1.png'},bad,anomalous,2,0.1\nlater2.png,good,ok,1,0.5\n"
    )
    got = run("add", own, later, "--marks", marks, "-o", own)
    assert got.code == 0, got.err
    assert b"2 images added" in got.out
    assert b"1 image that is marked as bad: left out; --keep-bad CATEGORY keeps" in got.out
    for text, says in (
        ("path,mark\nother.png,good\n", "--marks has 'other.png', which is no image of"),
        ("path,mark\nlater0.png,fine\n", "a mark is 'good' or 'bad'"),
        ("path,mark\nlater0.png,bad\n", "marks no image as good"),
        ("a,b\n1,2\n", "has no columns 'path' and 'mark'"),
        ("path,mark\nlater0.png,good\nlater0.png,bad\n", "marks 'later0.png' as good and as bad"),
    ):
        marks.write_text(text)
        assert_error(run("add", own, later, "--marks", marks, "-o", own), says)
    says = "--marks is '.*', which cannot be read: .*; give the file that a page saved"
    marks.write_text("path,mark\n" + "x" * 200_000 + ",good\n")
    torn = tmp_path / "torn.csv"
    torn.write_bytes("path,mark\n".encode("utf-16")[:-1])
    for path in (tmp_path / "no", later, marks, torn):
        assert_error(run("add", own, later, "--marks", path, "-o", own), says)


def test_marks_that_a_spreadsheet_has_written(run, own, later, tmp_path):
    marks = tmp_path / "marks.csv"
    for text in (
        b"\xef\xbb\xbfpath,mark\r\nlater0.png,good\r\nlater1.png,bad\r\n",
        b"path;mark\r\nlater0.png;good\r\nlater0.png;good\r\nlater1.png;bad\r\n",
        b"mark\tpath\ngood\tlater0.png\n",
        "path\tmark\r\nlater0.png\t Good \r\n".encode("utf-16"),
    ):
        marks.write_bytes(text)
        got = run("add", own, later, "--marks", marks, "-o", tmp_path / "new")
        assert got.code == 0, got.err
        assert b"1 image added to 12" in got.out


@pytest.mark.filterwarnings("default:.*of false alarms do not hold")
def test_images_that_are_marked_as_bad_are_kept_for_an_evaluation(
    run, own, later, picture_folder, tmp_path
):
    category, marks = tmp_path / "line", tmp_path / "marks.csv"
    marks.write_text("path,mark\nlater0.png,good\nlater1.png,bad\nlater2.png,bad\n")
    got = run("add", own, later, "--marks", marks, "--keep-bad", category, "-o", own)
    assert got.code == 0, got.err
    assert b"2 images that are marked as bad: in '" in got.out
    kept = category / "test" / "bad"
    assert names(kept) == ["later1.png", "later2.png"]
    assert (kept / "later1.png").read_bytes() == (later / "later1.png").read_bytes()
    assert_error(run("eval", own, category), "has no normal images in 'good'")
    shutil.copytree(picture_folder, category / "test" / "good")
    assert b"(2 bad, 12 good)" in run("eval", own, category).out
    # Once more changes nothing there.
    assert run("undo", own).code == 0
    assert run("add", own, later, "--marks", marks, "--keep-bad", category, "-o", own).code == 0
    assert names(kept) == ["later1.png", "later2.png"]
    for wrong, says in (
        (("add", own, later, "--keep-bad", category, "-o", own), "pass --marks, or leave it out"),
        (
            ("add", own, later, "--marks", marks, "--keep-bad", marks, "-o", own),
            "cannot make the folder '.*marks.csv/test/bad'",
        ),
    ):
        assert_error(run(*wrong), says)


def test_a_page_of_a_file_is_not_kept_as_a_file(run, own, later, tmp_path):
    pages = [Image.new("RGB", (40, 48), colour) for colour in ("red", "green", "blue")]
    pages[0].save(later / "pages.tif", save_all=True, append_images=pages[1:])
    marks = tmp_path / "marks.csv"
    marks.write_text("path,mark\nlater0.png,good\npages.tif#2,bad\n")
    got = run("add", own, later, "--marks", marks, "--keep-bad", tmp_path / "c", "-o", own)
    assert_error(got, "'.*pages.tif#2' is a page of one with several")


@pytest.mark.filterwarnings("default:.*of false alarms do not hold")
@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("add", "OWN", "LATER", "-o", "NEW"), "3 images added to 12"),
        (("forget", "OWN", "FIRST", "-o", "NEW"), "1 of 12 images forgotten"),
        (("calibrate", "OWN", "LATER", "-o", "NEW", "--alpha", "0.25"), "promised 25 % false"),
        (("merge", "OWN", "OWN", "-o", "NEW"), "12 + 12 = 24 images"),
        (("diff", "OWN", "OWN", "LATER"), "own.pydfm beside own.pydfm"),
    ],
)
@pytest.mark.filterwarnings("ignore:X holds rows that are not independent")  # copies
def test_changes_have_pages(run, own, later, picture_folder, tmp_path, command, says):
    places = {
        "OWN": own,
        "LATER": later,
        "NEW": tmp_path / "new.pydfm",
        "FIRST": next(iter(sorted(picture_folder.glob("*.*")))),
    }
    page = tmp_path / "page.html"
    arguments = [places.get(word, word) for word in command]
    got = run(*arguments, "--report", page)
    assert got.code == 0, got.err
    assert got.out.decode().endswith(f"page  {page}\n")
    assert says in page.read_text()
    page.unlink()
    got = run(*arguments, "--report", tmp_path / "none" / "page.html")
    assert_error(got, "there is no folder")
    assert not page.exists()


def test_models_that_do_not_decide_have_no_page_of_a_change(
    run, later, script, picture_folder, tmp_path
):
    path = tmp_path / "plain.pydfm"
    dfm = pydfm.DFM(3, backbone=script, image_size=40, device="cpu", calibration=None)
    dfm.fit(picture_folder).save(path, keep=True)
    before = path.read_bytes()
    got = run("add", path, later, "-o", path, "--report", tmp_path / "x.html")
    assert_error(got, "fitted with calibration=None")
    assert path.read_bytes() == before
    got = run("add", path, later, "-o", path)
    assert (got.code, got.err) == (0, "")
    assert b"before  no calibration: it scores, and does not decide\nnow" in got.out


@pytest.mark.filterwarnings("ignore:calibration is 'kfold'. the threshold of maps")
def test_models_with_folds_go_on(run, later, script, picture_folder, tmp_path):
    path = tmp_path / "folds.pydfm"
    dfm = pydfm.DFM(3, backbone=script, image_size=40, device="cpu", calibration="kfold")
    dfm.set_params(alpha=0.2).fit(picture_folder).save(path, keep=True)
    got = run("add", path, later, "-o", path, "--report", tmp_path / "x.html")
    assert (got.code, got.err) == (0, "")
    assert b"before  alpha 0.2: p-values come from 10 folds\n" in got.out
    assert "p-values come from 10 folds" in (tmp_path / "x.html").read_text()


@pytest.mark.filterwarnings("ignore:X has 3 of 3 rows or images")
def test_a_slim_file_says_that_it_cannot_go_on(run, own, later, script, tmp_path):
    load(own, script).save(own, keep=False)
    before = own.read_bytes()
    for command in ("add", "forget"):
        result = run(command, own, later, "-o", tmp_path / "new")
        assert_error(result, "does not hold the training state .*pydfm fit --keep")
    assert_error(run("merge", own, own, "-o", tmp_path / "new"), "does not hold the training state")
    assert own.read_bytes() == before
    got = run("calibrate", own, later, "-o", own, "--alpha", "0.25")
    assert got.code == 0, got.err
    assert b"promised 25 % false alarms, found " in got.out
    assert b"% of 3 images (95 % interval " in got.out
    assert load(own, script).calibration_ == "recalibrated"
    assert run("calibrate", own, later, "-o", own, "--extend", "--alpha", "0.25").code == 0
    assert len(load(own, script).held_out_scores_) == 6


def test_images_that_were_fitted_do_not_calibrate(run, own, picture_folder, tmp_path):
    new = tmp_path / "new"
    got = run("calibrate", own, picture_folder, "-o", new, "--alpha", "0.25")
    assert_error(
        got, "X has 12 of 12 images that the model was fitted on, such as image '.*00.png'"
    )
    assert not new.exists()


def test_what_belongs_to_the_fit_is_not_extended(run, own, later):
    got = run("calibrate", own, later, "-o", own, "--extend", "--alpha", "0.25")
    assert_error(got, "extend is True, but held-out scores are those of leave-one-out")


@pytest.mark.filterwarnings("ignore:X holds rows that are not independent")  # copies
def test_merged_models_are_that_of_all_images(run, own, script, tmp_path):
    got = run("merge", own, own, "-o", tmp_path / "both.pydfm")
    assert got.code == 0, got.err
    count = load(own, script).n_samples_
    assert f"{count} + {count} = {2 * count} images".encode() in got.out
    assert_error(run("merge", own, "-o", tmp_path / "x"), "name two or more")


def test_a_difference_is_told_by_image(run, own, later, picture_folder, tmp_path):
    new = tmp_path / "new.pydfm"
    assert run("add", own, later, "-o", new).code == 0
    got = run("diff", own, new, picture_folder)
    assert got.code == 0, got.err
    text = got.out.decode()
    assert "rank correlation of the scores: " in text
    assert " verdicts differ" in text
    same = run("diff", own, own, picture_folder).out.decode()
    assert "correlation of the scores: 1.000\n0 of " in same


def test_a_file_is_described(run, own, later):
    assert run("add", own, later, "-o", own).code == 0
    got = run("info", own)
    assert (got.code, got.err) == (0, "")
    text = got.out.decode()
    for line in ("network", "layer", "images", "calibration", "threshold", "journal", "sizes"):
        assert f"\n{line} " in text
    assert "  add: 3 images, " in text
    assert "images can be added and forgotten" in text
    assert ", fitted in torch\n" in text
    found = json.loads(run("info", own, "--json").out)
    assert found["goes_on"]
    assert found["network"]["runtime"] == "torch"
    assert [step["what"] for step in found["journal"]] == ["fit", "add"]
    added = [str(later / f"later{i}.png") for i in range(3)]
    assert found["journal"][1]["names"] == added
    assert found["sizes"]["training state"] > 0
    assert set(found["thresholds"]) == {"0.1"}
    assert_error(run("info", later), "there is no model file")


def test_a_full_disk_keeps_the_old_model(run, own, later, monkeypatch):
    before = own.read_bytes()
    from pydfm.io import model_file

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model_file, "write_file", full)
    assert_error(run("add", own, later, "-o", own), "No space left on device")
    assert own.read_bytes() == before


def test_a_fit_keeps_its_state_or_not(run, later, script, tmp_path):
    for option, goes_on in (("--keep", True), ("--slim", False)):
        path = tmp_path / option
        got = run("fit", later, "-o", path, "--backbone", script, *OPTIONS, option)
        assert got.code == 0, got.err
        assert json.loads(run("info", path, "--json").out)["goes_on"] is goes_on


def test_scripts_can_fail_on_anomalous_images(run, model, later, picture_folder):
    code = run("score", model, later, "--fail-on", "anomalous").code
    verdicts = run("score", model, later).out
    assert code == (1 if b",anomalous" in verdicts else 0)
    got = run("score", model, picture_folder, "--fail-on", "anomalous", "--alpha", "0.9")
    assert got.code == 1
    assert b",anomalous" in got.out
    assert_error(run("score", model, later, "--fail-on", "ok"), "it must be 'anomalous'")


def test_classes_are_the_subfolders_as_at_the_fit(tmp_path):
    """The folder of the class, not the innermost one that an image lies in."""
    paths = [str(tmp_path / "cat" / "monday" / "0.png"), str(tmp_path / "dog" / "1.png")]
    assert labels_of(tmp_path, paths, classes=True).tolist() == ["cat", "dog"]
    assert labels_of(tmp_path, paths, classes=False) is None
    with pytest.raises(ValueError, match="lies in no subfolder"):
        labels_of(tmp_path, [str(tmp_path / "2.png")], classes=True)


@pytest.mark.filterwarnings("default:.*images were skipped")
@pytest.mark.filterwarnings("ignore:alpha is 0.1, and 2 held-out")
@pytest.mark.filterwarnings("ignore:the model was recalibrated, and its rows change")
@pytest.mark.filterwarnings("default:.*of false alarms do not hold")
def test_the_journal_has_the_images_that_were_read(run, own, later, script):
    (later / "later1.png").write_bytes(b"torn")
    read = [str(later / "later0.png"), str(later / "later2.png")]
    for command in ("add", "forget", "calibrate"):
        got = run(command, own, later, "-o", own, "--skip-unreadable")
        assert got.code == 0, got.err
    steps = load(own, script).journal_[1:]
    assert [(step.what, step.n_samples) for step in steps] == [
        ("add", 2),
        ("forget", 2),
        ("calibrate", 2),
    ]
    assert all(list(step.names) == read for step in steps)
    text = run("info", own).out.decode()
    assert f"forget: 2 images, 12 in all (pydfm {pydfm.__version__}): {read[0]}, {read[1]}" in text


@pytest.mark.filterwarnings("default:.*of false alarms do not hold")
def test_images_that_come_twice_are_told(run, own, later):
    assert run("add", own, later, "-o", own).err == ""
    again = run("add", own, later, "-o", own)
    assert again.code == 0
    assert "3 of 18 images are copies of others" in again.err
    one = later / "later0.png"
    says = "image '.*later0.png' comes more often than the model was fitted on it; give it once"
    assert_error(run("forget", own, one, one, one, "-o", own), says)


@pytest.mark.filterwarnings("default:.*of false alarms do not hold")
def test_a_merge_tells_of_copies(run, own, tmp_path):
    got = run("merge", own, own, "-o", tmp_path / "both")
    assert got.code == 0
    assert "12 of 24 images are copies of others" in got.err


@pytest.mark.filterwarnings("default:.*of false alarms do not hold")
def test_calibration_images_that_come_twice_are_told(run, own, later):
    first = run("calibrate", own, later, "-o", own, "--alpha", "0.3")
    assert (first.code, first.err) == (0, "")
    again = run("calibrate", own, later, "-o", own, "--extend", "--alpha", "0.3")
    assert again.code == 0
    assert "X has 3 of 3 rows or images that are in the calibration sample already" in again.err
    # One of them under another name is known by its content.
    shutil.copy(later / "later0.png", later / "other.png")
    got = run("calibrate", own, later, "-o", own, "--alpha", "0.3")
    assert "X has 1 of 4 rows or images that are in the calibration sample already" in got.err


@pytest.mark.filterwarnings("default:.*images were skipped")
def test_images_none_of_which_can_be_read_change_nothing(run, own, later, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "x.png").write_text("junk")
    assert run("calibrate", own, later, "-o", own, "--alpha", "0.3").code == 0
    before = own.read_bytes()
    for command in ("add", "forget"):
        got = run(command, own, broken, "-o", own, "--skip-unreadable")
        assert got.code == 2
        assert "no image could be read, so that the model does not change" in got.err
        assert "recalibrated" not in got.err
        assert own.read_bytes() == before


def test_a_page_never_takes_the_place_of_a_model(run, own, kept, later, tmp_path):
    new = tmp_path / "new"
    says = "--report and --output are both '.*'; name another file for the page"
    for output in (own, new):
        assert_error(run("add", own, later, "-o", output, "--report", output), says)
    says = "'.*own.pydfm' is there and is no HTML page; name another file for it"
    for arguments in (
        ("add", own, later, "-o", new, "--report", own),
        ("diff", own, kept, later, "--report", own),
        ("report", own, later, "-o", own),
    ):
        assert_error(run(*arguments), says)
    assert own.read_bytes() == kept.read_bytes()
    assert not new.exists()


def test_what_another_process_wrote_meanwhile_is_kept(run, own, later, monkeypatch):
    fit = pydfm.DFM.partial_fit

    def slow(*given, **named):
        own.write_bytes(b"of another process")
        return fit(*given, **named)

    monkeypatch.setattr(pydfm.DFM, "partial_fit", slow)
    says = "'.*own.pydfm' was changed by another process since this one began, and is kept"
    assert_error(run("add", own, later, "-o", own), says)
    assert own.read_bytes() == b"of another process"
    assert names(own.parent) == ["later", "own.pydfm"]


@pytest.mark.filterwarnings("default:the model was recal")
def test_a_merge_tells_of_a_calibration_that_is_lost(run, own, kept, later, tmp_path):
    assert run("calibrate", own, later, "-o", own, "--alpha", "0.3").code == 0
    got = run("merge", kept, own, "-o", tmp_path / "both")
    assert "the model was recalibrated, and its rows change" in got.err


def test_models_with_and_without_classes_are_not_merged(run, own, script, later, tmp_path):
    other = tmp_path / "classes"
    dfm = pydfm.DFM(3, backbone=script, image_size=40, device="cpu", alpha=0.1, calibration="loo")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # so few images
        dfm.fit(later, labels=["a", "a", "a"]).save(other, keep=True)
    says = "one model was fitted with labels and the other without; models to be merged must both"
    assert_error(run("merge", own, other, "-o", tmp_path / "new"), says)
    assert_error(
        run("add", other, later, "-o", other), r"give labels \(--classes\) always or never"
    )


@pytest.mark.filterwarnings("default:.*images were skipped")
def test_a_check_that_judges_no_image_does_not_pass(run, own, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "x.png").write_text("junk")
    got = run("score", own, broken, "--fail-on", "anomalous", "--skip-unreadable")
    assert got.code == 2
    assert "no image could be read, so that none was judged" in got.err
