"""A model file with its network, without the estimator; more is in tests/estimator."""

import numpy as np
import pytest

import pydfm
from pydfm.io.loading import LoadedModel, load_model
from pydfm.parameters import PARAMETERS


@pytest.fixture(scope="module")
def saved(textures, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m.pydfm"
    dfm = pydfm.DFM(weights=None, image_size=64, device="cpu", alpha=0.2, batch_size=5)
    dfm.fit(textures[:8]).save(path)
    return path


def test_it_has_what_the_estimator_has(saved, textures):
    loaded, dfm = load_model(saved, device="cpu", n_threads=1), pydfm.load(saved, device="cpu")
    assert set(loaded.parameters) == set(PARAMETERS)
    assert loaded.parameters == {**dfm.get_params(), "n_threads": 1}
    scores = []
    for places, features, pixels in loaded.batches(textures):
        assert len(places) == len(features) == len(pixels) <= 5
        scores.append(loaded.fitted.score(features, 1).scores(["fre"])[0])
    assert np.array_equal(np.concatenate(scores), dfm.score(textures))


def test_other_parameters_are_checked(saved):
    loaded = load_model(saved, device="cpu")
    assert loaded.with_parameters(batch_size=2).parameters["batch_size"] == 2
    assert loaded.parameters["batch_size"] == 5
    with pytest.raises(ValueError, match=r"^batch_size is 0; it must be an integer of at least 1"):
        loaded.with_parameters(batch_size=0)


def test_skipped_images_are_warned_of(saved, picture_folder, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    loaded = load_model(saved, device="cpu").with_parameters(on_error="skip")
    paths = [str(picture_folder / "00.png"), str(tmp_path / "broken.png")]
    with pytest.warns(UserWarning, match="1 of 2 images were skipped"):
        assert [places for places, _, _ in loaded.batches(paths)] == [[0]]


def test_a_model_of_features_has_no_network(tmp_path):
    rows = np.random.default_rng(0).normal(size=(30, 6))
    pydfm.DFM(2).fit(rows).save(tmp_path / "m")
    loaded = load_model(tmp_path / "m")
    assert isinstance(loaded, LoadedModel)
    assert loaded.extractor is None
    with pytest.raises(ValueError, match="was fitted on features and has no network; leave"):
        load_model(tmp_path / "m", weights="w.pth")


def test_a_score_of_one_file_imports_neither_torch_nor_scikit_learn(
    saved, picture_folder, run_python
):
    code = """
import sys
from pydfm.cli.main import main
assert main(["score", sys.argv[1], sys.argv[2], "--device", "cpu"]) == 0
assert not {"torch", "torchvision", "sklearn", "scipy"} & set(sys.modules), sorted(sys.modules)
"""
    got = run_python(code, str(saved), str(picture_folder / "00.png"))
    assert got.stdout.startswith("path,score,p_value,verdict\n")
