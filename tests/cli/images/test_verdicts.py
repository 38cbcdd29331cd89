"""P-values and verdicts of `pydfm score`."""

import csv
import io

import pytest
from sklearn.base import clone

import pydfm
from pydfm.cli import main as cli


def table(capsys, *arguments):
    assert cli.main([str(argument) for argument in arguments]) == 0
    out, err = capsys.readouterr()
    return list(csv.DictReader(io.StringIO(out))), err


@pytest.mark.filterwarnings("ignore:1 of 13 images were skipped", "default:alpha is")
def test_the_command_line_tells_verdicts(picture_folder, textures, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    for path in picture_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    model = tmp_path / "m"
    dfm = pydfm.DFM(3, weights=None, layers="layer1", pool=4, image_size=32, device="cpu")
    dfm.fit(picture_folder).save(model)
    rows, err = table(capsys, "score", model, folder)
    assert err == (
        "pydfm: warning: alpha is 0.01, and 12 held-out images or groups give no p-value below "
        "1 / 13 = 0.0769: that level is used; 87 more are needed for 0.01\n"
    )
    want = dfm.assess(folder)
    assert [float(row["p_value"]) for row in rows] == pytest.approx(want.p_values, rel=1e-5)
    rows, err = table(capsys, "score", model, folder, "--alpha", "0.999")
    assert err == ""
    verdicts = [{1: "ok", -1: "anomalous"}[v] for v in dfm.predict(folder, alpha=0.999)]
    assert [row["verdict"] for row in rows] == verdicts
    rows, _ = table(capsys, "score", model, folder, "--fdr", "0.5")
    assert {row["verdict"] for row in rows} == {"ok"}
    (folder / "99.png").write_bytes(b"no picture")
    rows, _ = table(capsys, "score", model, folder, "--alpha", "0.5", "--skip-unreadable")
    assert rows[-1] == {
        "path": str(folder / "99.png"),
        "score": "nan",
        "p_value": "nan",
        "verdict": "unreadable",
    }
    (folder / "99.png").unlink()
    clone(dfm).set_params(calibration=None).fit(picture_folder).save(model)
    rows, err = table(capsys, "score", model, folder)
    assert {(row["p_value"], row["verdict"]) for row in rows} == {("", "")}
    assert cli.main(["score", str(model), str(folder), "--alpha", "0.1"]) == 2
    assert "was fitted with calibration=None" in capsys.readouterr().err
