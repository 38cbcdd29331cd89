import os
import time
from dataclasses import replace

import pytest

from pydfm.features.backbones import family_of
from pydfm.features.grid import Grid
from pydfm.features.onnx import store
from pydfm.features.onnx.store import Graph, key_of, read_graph, write_graph
from pydfm.features.transforms import Preprocessing

KEY = "a" * 64
GRAPH = Graph(b"\x00\n\xffgraph\n", (Grid(8, 4, 5, (0.5, 1.0)), Grid(3, 1, 1)))
SETTINGS = {"spatial": "flatten", "pool": None, "layout": "auto", "tokens": None}
OWN = {
    "backbone": "resnet18",
    "sha256": "0" * 64,
    "layers": ("layer2", "layer3"),
    "preprocessing": Preprocessing(),
    "settings": SETTINGS,
}
FAMILY = family_of("resnet18")


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("PYDFM_CACHE", str(tmp_path))
    return tmp_path / "graphs"


def test_a_graph_is_kept(folder):
    assert read_graph(KEY) is None
    write_graph(KEY, GRAPH)
    assert read_graph(KEY) == GRAPH
    assert [path.name for path in folder.iterdir()] == [f"{KEY}.graph"]


@pytest.mark.parametrize(
    "spoil", [lambda d: d[:-1], lambda d: d + b"x", lambda d: b"", bytes.upper]
)
def test_a_damaged_graph_is_none(folder, spoil):
    write_graph(KEY, GRAPH)
    file = folder / f"{KEY}.graph"
    file.write_bytes(spoil(file.read_bytes()))
    assert read_graph(KEY) is None
    write_graph(KEY, GRAPH)
    assert read_graph(KEY) == GRAPH


@pytest.mark.parametrize("header", [b"[]", b"{}", b'{"sha256": 1}', b'"text"'])
def test_a_header_of_anything_else_is_none(folder, header):
    write_graph(KEY, GRAPH)
    (folder / f"{KEY}.graph").write_bytes(header + b"\nrest")
    assert read_graph(KEY) is None


def test_what_was_not_used_for_the_longest_time_is_deleted(folder, monkeypatch):
    monkeypatch.setattr(store, "LARGEST", 1000)
    long_ago = time.time() - 1000
    for i, key in enumerate("abc"):
        write_graph(key, Graph(bytes(150), ()))
        os.utime(folder / f"{key}.graph", (long_ago + i, long_ago + i))
    assert read_graph("a") is not None  # which is a use
    (folder / ".pydfm-0123456789abcdef").write_bytes(b"left by a killed process")
    (folder / "note.txt").write_text("someone's")
    write_graph("d", Graph(bytes(500), ()))
    assert sorted(path.name for path in folder.iterdir()) == ["a.graph", "d.graph", "note.txt"]
    write_graph("e", Graph(bytes(1001), ()))
    assert read_graph("e") is None


def test_a_folder_that_cannot_be_written_is_left_alone(unprivileged, monkeypatch):
    monkeypatch.setenv("PYDFM_CACHE", str(unprivileged))
    write_graph(KEY, GRAPH)
    unprivileged.joinpath("graphs").chmod(0o555)
    write_graph("b", GRAPH)
    assert read_graph("b") is None
    assert read_graph(KEY) == GRAPH
    unprivileged.joinpath("graphs").chmod(0o755)
    monkeypatch.setenv("PYDFM_CACHE", str(unprivileged / "graphs" / f"{KEY}.graph"))
    write_graph(KEY, GRAPH)
    assert read_graph(KEY) is None


def test_a_user_without_a_home_keeps_none(monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    for name in ("PYDFM_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(store.Path, "home", home)
    write_graph(KEY, GRAPH)
    assert read_graph(KEY) is None


@pytest.mark.parametrize(
    ("platform", "variables", "want"),
    [
        ("linux", {}, ".cache/pydfm/graphs"),
        ("linux", {"XDG_CACHE_HOME": "/xdg"}, "/xdg/pydfm/graphs"),
        ("darwin", {}, "Library/Caches/pydfm/graphs"),
        ("win32", {}, "AppData/Local/pydfm/graphs"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/pydfm/graphs"),
        ("linux", {"PYDFM_CACHE": "/mine", "XDG_CACHE_HOME": "/xdg"}, "/mine/graphs"),
    ],
)
def test_the_folder_is_the_system_s_for_caches(monkeypatch, tmp_path, platform, variables, want):
    for name in ("PYDFM_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(store.sys, "platform", platform)
    monkeypatch.setattr(store.Path, "home", lambda: tmp_path)
    assert store._folder() == tmp_path / want


def test_the_name_depends_on_all_that_features_depend_on(monkeypatch):
    key = key_of(FAMILY, **OWN)
    assert key == key_of(FAMILY, **OWN)
    others = [
        {"backbone": "resnet34"},
        {"sha256": "1" * 64},
        {"layers": ("layer3", "layer2")},
        {"preprocessing": Preprocessing().with_changes(256, None, None)},
        {"preprocessing": replace(Preprocessing(), mean=(0.0, 0.0, 0.0))},
        {"preprocessing": replace(Preprocessing(), std=(1.0, 1.0, 1.0))},
        *({"settings": {**SETTINGS, name: 2}} for name in SETTINGS),
    ]
    keys = {key, *(key_of(FAMILY, **{**OWN, **other}) for other in others)}
    # What happens before the network does not matter.
    resized = replace(Preprocessing(), resize=300)
    assert key_of(FAMILY, **{**OWN, "preprocessing": resized}) == key
    monkeypatch.setattr(store, "version_of", lambda name: "another")
    keys.add(key_of(FAMILY, **OWN))
    monkeypatch.undo()
    monkeypatch.setattr(store, "_sources", lambda family: "edited")
    keys.add(key_of(FAMILY, **OWN))
    assert len(keys) == len(others) + 3


def test_the_code_of_the_family_counts():
    lite = family_of("efficientnet_lite0")
    assert store._sources(FAMILY) != store._sources(lite)
    for name in store._SOURCES:
        assert (store.Path(store.__file__).parent.parent / name).is_file()
