"""On a cluster of this machine: two workers, one of which is killed in the middle."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from reference import falling_rows

import pydfm
from pydfm.parallel.ray import _Score

pytest.importorskip("ray", reason='ray is not installed (the extra "ray")')

CLUSTER = """
import json, os, signal, sys
from pathlib import Path
import numpy as np, ray, ray.data
import pydfm
from pydfm.parallel import ray as cluster

ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
ray.data.DataContext.get_current().enable_progress_bars = False
folder = Path(sys.argv[1])
options = {"n_workers": 2, "num_cpus": 0.5}
"""

FEATURES = (
    CLUSTER
    + """
class Mortal(pydfm.DFM):
    def partial_fit(self, X, y=None, **options):
        if 70.0 in X[:, 0]:
            try:
                (folder / "killed").touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().partial_fit(X, **options)

rows, labels = np.load(folder / "rows.npy"), np.load(folder / "labels.npy")
items = [{"features": row, "kind": int(label)} for row, label in zip(rows, labels)]
data = ray.data.from_items(items, override_num_blocks=8)
dfm = cluster.fit(data, Mortal(4), label="kind", batch_size=10, **options)
cluster.score(data, dfm, output=str(folder / "scores"), score_type=("fre", "nll"), **options)
found = {"n": dfm.n_samples_, "scores": dfm.score(rows, score_type=("fre", "nll")).tolist()}
dfm.partial_fit(rows[:5], labels=labels[:5])
found["more"] = dfm.n_samples_
for name, call in {
    "column": lambda: cluster.fit(data, column="picture"),
    "bad": lambda: cluster.fit(data.map(lambda row: {"features": row["features"] * np.nan})),
}.items():
    try:
        call()
    except Exception as error:
        found[name] = f"{type(error).__name__}: {error}"
(folder / "found.json").write_text(json.dumps(found))
"""
)

IMAGES = (
    CLUSTER
    + """
paths = sorted(str(path) for path in (folder / "pictures").iterdir())
dfm = pydfm.DFM(3, weights=None, layers="layer1", pool=4, image_size=32, device="cpu", batch_size=4)
data = ray.data.from_items([{"path": path} for path in paths], override_num_blocks=4)
dfm = cluster.fit(data, dfm, batch_size=4, **options)
scored = cluster.score(data, dfm, batch_size=4, **options).to_pandas().sort_values("path")
found = {"n": dfm.n_samples_, "scores": scored["score"].tolist(), "columns": list(scored.columns)}
deep = sorted(str(path) for path in (folder / "deep").iterdir())
data = ray.data.from_items([{"path": path} for path in deep], override_num_blocks=4)
fresh = pydfm.DFM(3, weights=None, layers="layer1", pool=4, image_size=32, device="cpu")
fresh = cluster.fit(data, fresh, batch_size=2, **options)
found["intensity"] = fresh.feature_spec_.preprocessing.intensity
pages = ray.data.from_items([{"path": str(folder / "pages.tif")}])
for name, call in {"pages": lambda: cluster.score(pages, dfm, **options).to_pandas()}.items():
    try:
        call()
    except Exception as error:
        found[name] = str(error)
from pydfm.cli import main as cli
options = ["--weights", "none", "--layer", "layer1", "--pool", "4", "--image-size", "32"]
options += ["--device", "cpu", "--batch-size", "4", "--n-components", "3", "--ray", "2"]
files = [str(folder / name) for name in ("pictures", "model", "scores.csv")]
found["fit"] = cli.main(["fit", files[0], "-o", files[1], *options])
options = ["--device", "cpu", "--batch-size", "4", "--alpha", "0.2", "--ray", "2"]
found["score"] = cli.main(["score", files[1], files[0], "-o", files[2], *options])
(folder / "found.json").write_text(json.dumps(found))
"""
)


@pytest.fixture
def found(run_python, tmp_path):
    def run(code):
        run_python(code, str(tmp_path), RAY_DATA_DISABLE_PROGRESS_BARS="1", timeout=300)
        return json.loads((tmp_path / "found.json").read_text())

    return run


def test_a_worker_that_dies_is_not_counted_twice(tmp_path, found):
    rows = falling_rows(120, 16)
    rows[:, 0] += np.arange(120)
    rows[70, 0] = 70.0
    labels = np.arange(120) % 3
    np.save(tmp_path / "rows.npy", rows)
    np.save(tmp_path / "labels.npy", labels)
    got = found(FEATURES)
    assert (tmp_path / "killed").exists()
    want = pydfm.DFM(4).fit(rows, labels=labels)
    assert got["n"] == 120
    assert got["more"] == 125
    scores = want.score(rows, score_type=("fre", "nll"))
    np.testing.assert_allclose(got["scores"], scores, rtol=1e-6, atol=1e-6 * np.abs(scores).max())
    table = pd.concat(map(pd.read_parquet, sorted((tmp_path / "scores").iterdir())))
    assert sorted(table.columns) == ["kind", "score_fre", "score_nll"]
    assert len(table) == 120
    np.testing.assert_allclose(np.sort(table["score_fre"]), np.sort(scores[0]), rtol=1e-6)
    assert (
        got["column"] == "ValueError: the data set has no column 'picture'; it has features, kind"
    )
    assert "X contains NaN" in got["bad"]


def test_pictures_score_as_on_one_machine(tmp_path, textures, found):
    (tmp_path / "pictures").mkdir()
    for i, pixels in enumerate(textures):
        Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / "pictures" / f"{i:02}.png")
    (tmp_path / "deep").mkdir()
    for i, pixels in enumerate(textures):  # all dark but the last, which the workers cannot know
        level = pixels[0].astype(np.uint16) * (4 if i < 11 else 16)
        Image.fromarray(level).save(tmp_path / "deep" / f"{i:02}.png")
    pages = [Image.new("L", (8, 8)), Image.new("L", (8, 8))]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    got = found(IMAGES)
    assert got["intensity"] == "12bit"
    assert "pages.tif' has 2 pages, and a row is one image" in got["pages"]
    options = {"layers": "layer1", "pool": 4, "image_size": 32, "device": "cpu", "batch_size": 4}
    want = pydfm.DFM(3, weights=None, **options).fit(tmp_path / "pictures")
    assert got["n"] == 12
    assert got["columns"] == ["path", "score"]
    assert (got["fit"], got["score"]) == (0, 0)
    table = pd.read_csv(tmp_path / "scores.csv")
    assert list(table.columns) == ["path", "score", "p_value", "verdict"]
    np.testing.assert_allclose(table["score"], want.score(tmp_path / "pictures"), rtol=1e-3)
    np.testing.assert_allclose(got["scores"], want.score(tmp_path / "pictures"), rtol=1e-4)


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("kinds", [("nll",), ("fre",), ("fre", "nll", "mahalanobis")])
def test_what_is_assessed_is_scored_once(kinds, labelled, monkeypatch):
    rows = falling_rows(150, 16)
    labels = np.arange(150) % 2 if labelled else None
    dfm = pydfm.DFM(4, score_type=("nll", "fre"), alpha=0.1).fit(rows, labels=labels)
    want, scores = dfm.assess(rows, labels=labels), dfm.score(rows, labels=labels, score_type=kinds)
    asked = []
    score = pydfm.DFM.score
    monkeypatch.setattr(
        pydfm.DFM, "score", lambda *a, **k: asked.extend(k["score_type"]) or score(*a, **k)
    )
    label = "kind" if labelled else None
    batch = {"features": rows} | ({"kind": labels} if labelled else {})
    got = _Score(dfm, "features", label, kinds, list(kinds), assess=True)(batch)
    assert asked == [kind for kind in kinds if kind != "nll"]
    assert np.array_equal(got.pop("p_value"), want.p_values)
    assert np.array_equal(got.pop("verdict"), want.verdicts)
    got.pop("kind", None)
    assert list(got) == list(kinds)
    assert np.array_equal(np.stack(list(got.values())), scores)


def test_images_that_are_skipped_have_no_verdict(picture_folder, tmp_path):
    """As `DFM.assess`, on a worker, which is called here without a cluster."""
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    options = {"weights": None, "image_size": 32, "spatial": "mean", "layers": "layer1"}
    dfm = pydfm.DFM(**options, on_error="skip", alpha=0.1, device="cpu").fit(picture_folder)
    paths = [str(sorted(picture_folder.iterdir())[0]), str(bad)]
    worker = _Score(dfm, "path", None, ("fre", "nll"), ["score_fre", "score_nll"], True)
    with pytest.warns(UserWarning, match="1 of 2 images were skipped"):
        got = worker({"path": np.array(paths)})
    with pytest.warns(UserWarning, match="1 of 2 images were skipped"):
        want = dfm.assess(paths)
    assert got["verdict"].tolist() == want.verdicts.tolist()
    assert np.array_equal(got["p_value"], want.p_values, equal_nan=True)
    assert np.array_equal(got["score_fre"], want.scores, equal_nan=True)
    assert np.isfinite(got["score_nll"][0])
    assert np.isnan(got["score_nll"][1])
