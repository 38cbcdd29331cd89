import importlib
import pkgutil
import sys

import pytest
from command_line import assert_error

import pydfm.cli
from pydfm.cli.command import Command, commands


def test_a_module_with_a_command_is_enough(run, tmp_path, monkeypatch):
    (tmp_path / "hello.py").write_text(
        "from pydfm.cli.command import Command\n"
        "def hello(*, alpha, **parameters):\n"
        '    """Say hello."""\n'
        "    print(alpha, parameters)\n"
        'COMMAND = Command("hello", hello, 19, roles=("runtime",), optional={"alpha": "A rate."})\n'
    )
    monkeypatch.setattr(pydfm.cli, "__path__", [*pydfm.cli.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    commands.cache_clear()
    try:
        names = [command.name for command in commands()]
        assert names[names.index("hello") + 1] == "score"
        assert b"  hello      Say hello." in run("--help").out
        assert_error(run(), "fit, info, .*, hello, score, .*, benchmark, demo, weights or config")
        assert b"A rate." in run("hello", "--help").out
        got = run("hello", "--threads", "2", "--skip-unreadable")
        assert got.out.decode() == (
            "None {'device': None, 'runtime': 'auto', 'batch_size': 32, 'n_threads': 2, "
            "'on_error': 'skip', 'max_pixels': None}\n"
        )
    finally:
        sys.modules.pop("pydfm.cli.hello", None)
        commands.cache_clear()


@pytest.mark.parametrize("command", commands(), ids=lambda command: command.name)
def test_every_command_has_a_help_text(run, command):
    got = run(command.name, "--help")
    assert (got.code, got.err) == (0, "")
    text = command.help if isinstance(command.run, tuple) else command.run.__doc__
    assert text.split(".")[0].split("\n")[0][:40].encode() in got.out
    orders = [own.order for own in commands()]
    assert len(set(orders)) == len(orders)


def test_names_are_given_once():
    modules = [info.name for info in pkgutil.walk_packages(pydfm.cli.__path__, "pydfm.cli.")]
    assert {"pydfm.cli.models.fit", "pydfm.cli.images.score", "pydfm.cli.demo"} <= set(modules)
    assert all(isinstance(command, Command) for command in commands())
