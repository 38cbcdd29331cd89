"""Model files of every kind, as older versions wrote them, give the scores that they gave then."""

import json
from pathlib import Path

import model_kinds
import numpy as np
import pytest
import safetensors

import pydfm
from pydfm.stats.scores import SCORES

FOLDER = Path(__file__).parent / "fixtures"
FILES = sorted(FOLDER.glob("*.pydfm"))


@pytest.fixture(scope="module")
def network():
    return model_kinds.network()


def load(path, network):
    with safetensors.safe_open(path, framework="np") as file:
        header = json.loads(file.metadata()["pydfm"])
    network = {} if header["features"] is None else {"backbone": network, "device": "cpu"}
    if header["calibration"] == "kfold" and "folds" not in header["held_out"]:
        says = f"'.*{path.name}' holds scores .* not the models of the folds, .*; fit again"
        with pytest.warns(UserWarning, match=says):
            return pydfm.load(path, **network)
    return pydfm.load(path, **network)


def test_there_is_one_of_each_kind_and_they_are_small():
    names = {path.stem for path in FILES}
    assert names == {path.stem for path in FOLDER.glob("*.npz")}
    assert {f"format1-{kind}" for kind in model_kinds.KINDS} <= names
    assert max(path.stat().st_size for path in FOLDER.iterdir()) < 16_000


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_older_file_gives_the_scores_it_gave(path, network, tmp_path):
    dfm = load(path, network)
    want = dict(np.load(path.with_suffix(".npz")))
    rows = want.pop("queries")
    found = model_kinds.answers(dfm, rows)
    assert found.keys() == want.keys()
    if len(dfm.model_.layers) > 1 and SCORES[dfm.score_type].signed:
        del want["maps"]  # those of layers had no common scale where scores may be negative
    for name, own in want.items():
        assert found[name].dtype == own.dtype, name
        if own.dtype.kind in "fc":
            # Processors differ in the last bits of a sum.
            scale = np.abs(own).max()
            np.testing.assert_allclose(found[name], own, rtol=1e-6, atol=1e-6 * scale, err_msg=name)
        else:
            assert np.array_equal(found[name], own), name
    # It is read whole: what is written again says the same.
    dfm.save(tmp_path / "again")
    again = model_kinds.answers(load(tmp_path / "again", network), rows)
    for name, own in found.items():
        assert np.array_equal(again[name], own), name


def test_folds_of_an_older_file_are_compared_under_the_whole_model(network):
    with pytest.warns(UserWarning, match="calls more normal images anomalous than alpha says"):
        dfm = pydfm.load(FOLDER / "format1-kfold.pydfm")
    assert (dfm.calibration_, dfm.fitted_.held_out.folds) == ("kfold", ())
    scores, own = dfm.score(model_kinds.FEATURES), dfm.held_out_scores_
    want = (1 + (own >= scores[:, None]).sum(axis=1)) / (1 + len(own))
    assert np.array_equal(dfm.p_value(model_kinds.FEATURES), want)
    assert np.array_equal(scores > dfm.threshold_, want <= dfm.alpha)
    for kind in ("folds", "images-folds"):  # without a warning
        assert len(load(FOLDER / f"format1-{kind}.pydfm", network).fitted_.held_out.folds) == 5


@pytest.mark.parametrize("kind", model_kinds.IMAGE_KINDS)
def test_images_become_the_features_they_were(kind, network):
    path = FOLDER / f"format1-{kind}.pydfm"
    dfm = load(path, network)
    want = np.load(path.with_suffix(".npz"))["queries"]
    found = dfm.extract(model_kinds.QUERIES)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())
