import importlib

import pytest

import pydfm


def test_every_name_is_that_of_its_module():
    for name in pydfm.__all__:
        value = getattr(pydfm, name)
        if name != "__version__":
            assert value is getattr(importlib.import_module(value.__module__), name)
            assert value.__module__.startswith("pydfm.")
            assert value.__doc__
    assert set(pydfm._HOME) == set(pydfm.__all__) - {"__version__"}
    assert sorted(pydfm.__all__) == pydfm.__all__


def test_names_are_found_by_completion_and_by_a_star():
    assert set(pydfm.__all__) <= set(dir(pydfm))
    assert dir(pydfm) == sorted(dir(pydfm))
    namespace = {}
    exec("from pydfm import *", namespace)
    assert set(pydfm.__all__) <= set(namespace)


def test_a_name_that_is_not_there_is_told():
    with pytest.raises(AttributeError, match="module 'pydfm' has no attribute 'dfm_'"):
        _ = pydfm.dfm_
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        exec("from pydfm import nothing")
    assert not hasattr(pydfm, "_nothing")


def test_the_import_loads_nothing_that_is_heavy(run_python):
    code = """
import sys
import pydfm
heavy = {"numpy", "torch", "torchvision", "sklearn", "scipy", "PIL", "typer", "tqdm", "pydfm._core"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert set(pydfm.__all__) <= set(dir(pydfm))
assert not heavy & set(sys.modules)

import pydfm.cli.main
loaded = set(sys.modules)
assert not (heavy - {"typer"}) & loaded, heavy & loaded

# Features need no torch: neither its import, nor that of what reads pictures.
import numpy
dfm = pydfm.DFM(2).fit(numpy.random.default_rng(0).normal(size=(20, 5)))
dfm.score(numpy.zeros((3, 5)))
dfm.save("model")
pydfm.load("model").score(numpy.zeros((3, 5)))
assert not {"torch", "torchvision"} & set(sys.modules)
"""
    run_python(code)
