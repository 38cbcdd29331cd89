import numpy as np
import pytest

from pydfm.cli import main as cli


@pytest.mark.filterwarnings("always:broken")
def test_mvtec_on_the_command_line(root, config, tmp_path, capsys):
    output, table = tmp_path / "r.csv", tmp_path / "r.md"
    arguments = ["benchmark", "mvtec", str(root), "--config", str(config), "-o", str(output)]
    assert cli.main([*arguments, "--markdown", str(table)]) == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "warning: broken, small: " in printed.err
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out.strip() == table.read_text().strip()
    assert len(output.read_text().splitlines()) == 5


def test_ood_on_the_command_line(sets, tmp_path, capsys):
    path, config = tmp_path / "data.npz", tmp_path / "c.toml"
    train, test, noise, _ = sets
    np.savez(path, a_x=train.images, a_y=train.labels, b_x=test.images, c_x=noise.images)
    config.write_text("[all]\nn_components = 'all'\n")
    sources = [f"{path}#{name}" for name in "abc"]
    assert cli.main(["benchmark", "ood", *sources, "--config", str(config)]) == 0
    assert "20 in-distribution, 15 out-of-distribution" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["mvtec", "nowhere"], "there is no folder 'nowhere'"),
        (["mvtec", ".", "--config", "no.toml"], "there is no file 'no.toml'"),
        (["mvtec", ".", "-o", "no/r.csv"], "--output: there is no folder 'no'"),
        (["mvtec", ".", "--markdown", "no/r.md"], "--markdown: there is no folder 'no'"),
        (["mvtec", ".", "--markdown", "."], "--markdown: '.' is a folder; name a file to write"),
        (["mvtec", "."], "no folder below '.' has a 'train' or a 'test'"),
        (["ood", "a", "b"], "OOD"),
        (["ood", "a", "b", "c"], "there is no file or folder 'a'"),
    ],
)
def test_wrong_use_is_reported_in_one_line(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["benchmark", *arguments]) == 2
    printed = capsys.readouterr()
    assert says in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
