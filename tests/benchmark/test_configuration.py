import pytest
from measured import FAST

from pydfm.benchmark.configuration import Configuration, read_configurations
from pydfm.benchmark.mvtec import CONFIGURATIONS
from pydfm.benchmark.outliers import default_configurations


def test_configurations_come_from_a_file(config):
    small, few = read_configurations(config)
    assert small == Configuration("small", {**FAST, "n_components": None})
    assert few.build(n_threads=1).get_params()["n_components"] == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[a", "is not TOML"),
        ("", "must have a table"),
        ("pool = 2", "must have a table"),
        ("[a]\npools = 2", "'a' has 'pools', which is no parameter of DFM; those are"),
    ],
)
def test_a_wrong_file_is_reported(tmp_path, text, says):
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=says):
        read_configurations(path)


def test_settings_are_what_a_result_depends_on():
    one = Configuration("a", {"pool": 2, "n_threads": 1, "layers": ("x",)})
    assert one.settings() == '{"layers": ["x"], "pool": 2}'
    assert Configuration("a", {"layers": ("x",), "pool": 2}).settings() == one.settings()
    assert Configuration("a", {"layers": ("x",), "pool": 3}).settings() != one.settings()


def test_defaults_are_parameters_that_there_are():
    for configuration in (*CONFIGURATIONS, *default_configurations(labelled=True)):
        assert configuration.build().get_params()["layers"]
