"""Training states in model files: rows are added, removed and merged as before the save."""

import json
import warnings

import model_kinds
import numpy as np
import pytest
from model_files import parts, write
from reference import falling_rows

import pydfm
from pydfm.io.tensors import STATE

MORE = (0.9 * model_kinds.ROWS[::3] + 0.01).astype(np.float32)
IMAGES = 255 - model_kinds.IMAGES[1::3]


@pytest.fixture(scope="module")
def network():
    return model_kinds.network()


def given(kind, count):
    """Labels and groups of more rows of a kind."""
    parameters = {**model_kinds.FEATURE_KINDS, **model_kinds.IMAGE_KINDS}[kind]
    labels, groups = parameters.get("labels"), parameters.get("groups")
    some = {}
    if labels is not None:
        some["labels"] = labels[:count]
    if groups is not None:
        some["groups"] = np.arange(count) // 2 + 50
    return some


def rows_of(kind):
    if kind in model_kinds.IMAGE_KINDS:
        return IMAGES
    if kind == "names":
        import pandas as pd

        return pd.DataFrame(MORE, columns=[f"feature {i}" for i in range(MORE.shape[1])])
    return MORE


def kept(dfm, path, network):
    """The model after a save that keeps its state, and a load."""
    dfm.save(path, keep=True)
    moved = {} if dfm.feature_spec_ is None else {"backbone": network, "device": "cpu"}
    return pydfm.load(path, **moved)


def refusal(method, X, some):
    """What the method says where it refuses, or None."""
    try:
        method(X, **some)
    except ValueError as error:
        return str(error)


def same(a, b):
    """Whether two models say the same, to the bit."""
    rows = model_kinds.queries_of(a)
    mine, theirs = model_kinds.answers(a, rows), model_kinds.answers(b, rows)
    assert mine.keys() == theirs.keys()
    for name, own in mine.items():
        assert np.array_equal(own, theirs[name], equal_nan=own.dtype.kind == "f"), name
    assert a.n_samples_ == b.n_samples_


@pytest.mark.parametrize("kind", sorted(set(model_kinds.KINDS) - {"logistic"}))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_rows_are_added_merged_and_forgotten_as_before_the_save(kind, network, tmp_path):
    dfm = model_kinds.fitted(kind, network)
    loaded = kept(dfm, tmp_path / "a", network)
    again = kept(loaded, tmp_path / "b", network)
    assert loaded.journal_ == dfm.journal_ == again.journal_
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    more = rows_of(kind)
    some = given(kind, len(more))
    says = refusal(dfm.partial_fit, more, some)
    assert refusal(loaded.partial_fit, more, some) == says
    same(dfm, loaded)
    with_itself = dfm.merge(dfm) if "groups" not in some else dfm
    if "groups" not in some:
        same(with_itself, loaded.merge(loaded))
    says = refusal(dfm.forget, more, some)
    assert refusal(loaded.forget, more, some) == says
    same(dfm, loaded)
    assert [step.what for step in loaded.journal_] == [step.what for step in dfm.journal_]


@pytest.mark.parametrize("options", [{}, {"covariance": "tied"}, {"max_memory": 60_000}])
def test_folded_rows_go_on_to_the_bit(tmp_path, options):
    rows = falling_rows(400, 30).astype(np.float32)
    labels = np.arange(400) % 2 if options.get("covariance") else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        dfm = pydfm.DFM(5, **options).fit(
            rows[:300], labels=None if labels is None else labels[:300]
        )
        dfm.save(tmp_path / "model", keep=True)
        loaded = pydfm.load(tmp_path / "model")
        for one in (dfm, loaded):
            one.partial_fit(rows[300:], labels=None if labels is None else labels[300:])
        assert np.array_equal(dfm.score(rows), loaded.score(rows))
        assert np.array_equal(dfm.held_out_scores_, loaded.held_out_scores_)
        assert dfm.n_samples_ == loaded.n_samples_ == 400


def test_a_state_is_kept_where_it_is_no_larger_than_the_model(tmp_path):
    few = falling_rows(20, 60).astype(np.float32)
    dfm = pydfm.DFM(0.99).fit(few)
    dfm.save(tmp_path / "few")
    assert pydfm.load(tmp_path / "few").partial_fit(few).n_samples_ == 40
    many = falling_rows(500, 60).astype(np.float32)
    pydfm.DFM(3, calibration=None).fit(many).save(tmp_path / "many")
    with pytest.raises(ValueError, match=r"does not hold the training state .*pydfm fit --keep"):
        pydfm.load(tmp_path / "many").partial_fit(many)
    dfm.save(tmp_path / "slim", keep=False)
    assert (tmp_path / "slim").stat().st_size < (tmp_path / "few").stat().st_size
    slim = pydfm.load(tmp_path / "slim")
    assert np.array_equal(slim.score(few), dfm.score(few))
    with pytest.raises(ValueError, match="came from a file without its training state; fit again"):
        slim.save(tmp_path / "no", keep=True)
    assert not (tmp_path / "no").exists()


def test_a_recalibrated_model_goes_on(tmp_path):
    rows = falling_rows(60, 30).astype(np.float32)
    dfm = pydfm.DFM(5, alpha=0.1).fit(rows[:40])
    dfm.save(tmp_path / "model", keep=True)
    loaded = pydfm.load(tmp_path / "model")
    loaded.recalibrate(rows[40:])
    loaded.save(tmp_path / "later", keep=True)
    later = pydfm.load(tmp_path / "later")
    assert [step.what for step in later.journal_] == ["fit", "calibrate"]
    assert [step.n_samples for step in later.journal_] == [40, 20]
    with pytest.warns(UserWarning, match="recalibrat"):
        later.partial_fit(rows[40:])
    assert later.journal_[-1].what == "add"
    assert later.journal_[-1].total == 60


# Nothing that a file says is trusted


CHANGES = {
    "cell.0.kept.rows": [
        lambda a: a.astype(np.float16),
        lambda a: a[:, 1:],
        lambda a: a * np.float32(np.nan),
        lambda a: a[:-1],
    ],
    "cell.0.kept.classes": [lambda a: a + 1, lambda a: a.astype(np.int32), lambda a: a - 1],
    "cell.0.kept.places": [lambda a: a + 10**6, lambda a: a[1:]],
    "cell.0.kept.units": [lambda a: a + 10**6],
    "units.counts": [lambda a: a - 1, lambda a: a * 1.0, lambda a: np.append(a, 3)],
}


@pytest.mark.parametrize(("name", "change"), [(n, c) for n, each in CHANGES.items() for c in each])
def test_arrays_that_no_fit_gives_are_refused(tmp_path, name, change):
    rows = falling_rows(20, 60).astype(np.float32)
    pydfm.DFM(0.99).fit(rows).save(tmp_path / "model", keep=True)
    tensors, header = parts(tmp_path / "model")
    tensors[STATE + name] = np.ascontiguousarray(change(tensors[STATE + name]))
    write(tmp_path / "model", tensors, header)
    with pytest.raises(ValueError, match="cannot read the model file"):
        pydfm.load(tmp_path / "model")


def _set(*path, value):
    def change(header):
        *first, last = path
        own = header["state"]
        for key in first:
            own = own[key]
        own[last] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set("n_samples", value=19),
        _set("n_samples", value=True),
        _set("n_seen", value=3),
        _set("classes", value=["a"]),
        _set("labelled", value=1),
        _set("cells", value=[]),
        _set("cells", 0, "key", value=[0, 0, 1]),
        _set("cells", 0, "key", value=[0, 7, 0]),
        _set("cells", 0, "n_samples", value=3),
        _set("cells", 0, "kept", value=False),
        _set("cells", 0, "sample", value=None),
        _set("settings", "held_out", value="none"),
        _set("settings", "n_components", value=-1),
        _set("settings", "max_bytes", value=0),
        _set("settings", value={}),
        _set("units", "grouped", value=True),
        _set("units", "groups", value=[[0, "a", 0]]),
        _set("names", value=[[0, ["a"] * 30]]),
        _set("identities", value=True),
        _set("held", value={"rows": True, "size": 3, "dropped": False}),
        lambda header: header.update(state=3),
        lambda header: header.update(journal=[{"what": "fit"}]),
        lambda header: header["journal"][0].update(when="yesterday"),
    ],
)
def test_descriptions_that_no_fit_gives_are_refused(tmp_path, change):
    rows = falling_rows(20, 60).astype(np.float32)
    pydfm.DFM(0.99).fit(rows).save(tmp_path / "model", keep=True)
    tensors, header = parts(tmp_path / "model")
    header = json.loads(json.dumps(header))
    change(header)
    write(tmp_path / "model", tensors, header)
    with pytest.raises(ValueError, match="cannot read the model file"):
        pydfm.load(tmp_path / "model")


def test_a_scatter_of_no_rows_is_refused(tmp_path):
    rows = falling_rows(100, 6).astype(np.float32)
    pydfm.DFM(3).fit(rows).save(tmp_path / "model", keep=True)
    for k, change in enumerate(
        [
            lambda a: a + np.triu(np.ones_like(a), 1),
            lambda a: -a,
            lambda a: a + np.where(np.eye(len(a)), 0, 1e9),
            lambda a: a[1:],
        ]
    ):
        tensors, header = parts(tmp_path / "model")
        (name,) = (name for name in tensors if name.endswith("scatter.products"))
        tensors[name] = np.ascontiguousarray(change(tensors[name]))
        write(tmp_path / f"{k}", tensors, header)
        with pytest.raises(ValueError, match="products"):
            pydfm.load(tmp_path / f"{k}")
