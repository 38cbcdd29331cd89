import os
import re
import select
import signal
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
import tqdm
from command_line import OPTIONS, assert_error, names, read_rows, start
from PIL import Image

import pydfm
from pydfm import __main__
from pydfm.cli import main as cli


def test_config_help_and_version_are_printed(run):
    assert run("config").out.startswith(b"{")
    assert run("--version").out == f"pydfm {pydfm.__version__}\n".encode()
    for command in ((), ("fit",), ("score",), ("eval",), ("demo",), ("config",)):
        got = run(*command, "--help")
        assert (got.code, got.err) == (0, "")
        assert got.out.startswith(f"Usage: {' '.join(('pydfm', *command))} ".encode())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            (),
            r"needed: fit, info, .*, score, watch, .*, certify, .*, weights or config",
        ),
        (("fits",), r"No such command 'fits'.* \(see pydfm --help\)"),
        (("--colour",), r"No such option: --colour \(see pydfm --help\)"),
        (("fit",), r"Missing argument 'FOLDER' \(see pydfm fit --help\)"),
        (("fit", "."), r"--output is missing; name the model file to write, -o MODEL"),
        (("fit", ".", "-o"), r"'-o' requires an argument"),
        (("score",), "Missing argument 'MODEL'"),
        (("score", "m"), "Missing argument 'FOLDER'"),
        (("score", "m", "a", "b"), "unexpected extra argument"),
        (("eval", "m", "a", "--pool", "2"), "No such option: --pool"),
        (("fit", ".", "-o", "m", "--score-type", "mse"), "'mse' is not one of 'fre', 'mahal"),
        (("fit", ".", "-o", "m", "--covariance", "all"), "'all' is not one of 'class', 'tied'"),
        (("fit", ".", "-o", "m", "--combine", "logistic"), "'logistic' is not one of 'sum', 'max'"),
        (("fit", ".", "-o", "m", "--precision", "half"), "'half' is not one of 'float32'"),
        (("fit", ".", "-o", "m", "--pool", "two"), "Invalid value for '--pool': .* integer"),
        (("demo", "extra"), "unexpected extra argument"),
    ],
)
def test_wrong_usage_is_one_line(run, arguments, says):
    assert_error(run(*arguments), says)


def test_the_traceback_is_shown_to_who_asks_for_it(run, model, tmp_path, monkeypatch):
    monkeypatch.setenv("PYDFM_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        run("score", model, tmp_path / "gone")


@pytest.mark.filterwarnings("default:first")
def test_a_warning_is_one_line(run, monkeypatch):
    def warn():
        import warnings

        warnings.warn("first\n  and second", stacklevel=1)

    monkeypatch.setattr("pydfm.runtime.config.show_config", warn)
    got = run("config")
    assert (got.code, got.out) == (0, b"")
    assert got.err == "pydfm: warning: first and second\n"


def test_an_output_that_cannot_be_written_is_reported_before_any_work(
    run, model, script, picture_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(pydfm.DFM, "fit", None)
    monkeypatch.setattr(pydfm.DFM, "score", None)
    monkeypatch.setattr("pydfm.datasets.load_demo", None)
    for command in (
        ("fit", picture_folder, "--backbone", script, *OPTIONS),
        ("score", model, picture_folder),
        ("demo",),
    ):
        assert_error(run(*command, "-o", tmp_path / "gone" / "x"), "there is no folder '.*gone'")
        assert_error(run(*command, "-o", tmp_path), "is a folder; name a file to write")


def test_an_error_leaves_the_old_files(run, model, script, picture_folder, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.png").write_bytes(b"text")
    (tmp_path / "x").write_bytes(b"old")
    output = ("-o", tmp_path / "x")
    assert run("score", model, tmp_path / "in", *output).code == 2
    assert run("fit", tmp_path / "in", *output, "--backbone", script, *OPTIONS).code == 2
    assert (tmp_path / "x").read_bytes() == b"old"
    assert names(tmp_path) == ["in", "x"]


def test_pictures_that_are_not_there_are_reported(run, model, script, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.png").write_bytes(b"text")
    for command in (
        ("score", model),
        ("fit", "-o", tmp_path / "m", "--backbone", script, *OPTIONS),
    ):
        assert_error(run(*command, tmp_path / "gone"), "there is no file or folder '.*gone'")
        assert_error(run(*command, tmp_path / "empty"), "the folder '.*empty' holds no images")
        assert_error(run(*command, tmp_path), r"cannot read image '.*bad\.png': it is not an image")
    assert names(tmp_path) == ["bad.png", "empty"]


@pytest.mark.parametrize("at_a_terminal", [True, False])
def test_progress_is_shown_at_a_terminal_only(
    run, model, picture_folder, monkeypatch, at_a_terminal
):
    actual = tqdm.tqdm
    monkeypatch.setattr(tqdm, "tqdm", lambda **options: actual(**{**options, "delay": 0}))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: at_a_terminal)
    got = run("score", model, picture_folder)
    assert (got.code, len(read_rows(got.out))) == (0, 12)
    assert ("score: 100%" in got.err) == at_a_terminal
    assert (got.err != "") == at_a_terminal


def test_a_terminal_shows_progress_and_ctrl_c_stops_at_once(model, script, tmp_path):
    pty, fcntl, termios = map(pytest.importorskip, ("pty", "fcntl", "termios"))
    pixels = np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "0.png")
    for i in range(1, 500):  # half a minute's work
        (tmp_path / f"{i}.png").hardlink_to(tmp_path / "0.png")
    output = tmp_path / "out"
    output.mkdir()
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    program = start(
        *("score", model, tmp_path, "-o", output / "x", "--backbone", script, "--threads", "2"),
        cwd=output,
        stderr=follower,
    )
    os.close(follower)
    shown = b""
    stopped = None
    try:
        while True:
            ready, _, _ = select.select([leader], [], [], 60)
            assert ready, shown
            try:
                part = os.read(leader, 9999)
            except OSError:  # the other end is closed
                break
            shown += part
            if stopped is None and re.search(rb"score: +\d+%.*\d/500 ", shown):
                stopped = time.monotonic()
                program.send_signal(signal.SIGINT)
        assert program.wait(60) == 130
    finally:
        program.kill()
        os.close(leader)
    assert stopped is not None, shown
    # A second on an idle machine; the work would take ten times as long.
    assert time.monotonic() - stopped < 5
    assert shown.replace(b"\r\n", b"\n").endswith(b"\npydfm: stopped\n")
    assert b"Traceback" not in shown
    assert names(output) == []


@pytest.fixture
def interruptible():
    previous = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.mark.usefixtures("interruptible")
def test_stopped_stands_on_a_line_of_its_own_at_a_terminal(monkeypatch, capsys):
    def half_a_bar(*_, **__):
        sys.stderr.write("\rscore:  26%|###")
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "build", lambda _: half_a_bar)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert __main__.main() == 130
    assert capsys.readouterr().err == "\rscore:  26%|###\npydfm: stopped\n"


@pytest.mark.parametrize("module", ["pydfm.cli.main", "typer", "numpy"])
def test_ctrl_c_stops_its_imports(module, run_python):
    code = """
import signal, sys

class Pressed:
    def find_spec(self, name, *_):
        if name == module: raise KeyboardInterrupt

module = sys.argv[1]
sys.argv[1:] = ["config"]
sys.meta_path.insert(0, Pressed())
from pydfm.__main__ import main
code = main()
signal.raise_signal(signal.SIGINT)  # pressed again
sys.exit(code)
"""
    got = run_python(code, module, check=False)
    assert (got.returncode, got.stdout, got.stderr) == (130, "", "pydfm: stopped\n")


@pytest.mark.skipif(sys.platform == "win32", reason="needs pipes of POSIX")
def test_the_reader_of_the_output_may_leave(model, script, picture_folder, tmp_path):
    read, write = os.pipe()
    with start(
        *("score", model, picture_folder, "--backbone", script),
        cwd=tmp_path,
        stdout=write,
        stderr=subprocess.PIPE,
    ) as program:
        os.close(write)
        os.close(read)
        assert program.communicate(timeout=120)[1] == b""
    assert program.returncode == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
def test_a_full_disk_is_reported(model, script, pictures, tmp_path):
    path = tmp_path / os.fsdecode(b"\xff.png")
    pictures[0].save(path)
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        program = start(
            *("score", model, path, "--backbone", script),
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
        )
        assert program.communicate(timeout=120)[1] == (
            b"pydfm: [Errno 28] No space left on device\n"
        )
    assert program.returncode == 2


def test_the_output_may_be_closed(run, model, picture_folder, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert_error(run("score", model, picture_folder), "standard output is closed; name a file with")
    monkeypatch.setattr(sys, "stderr", None)
    assert run("score", model, picture_folder).code == 2


@pytest.mark.parametrize("arguments", ["--help", "--version", "--wrong", "config --help", ""])
def test_it_starts_without_what_is_heavy(run_python, arguments):
    code = """
import sys
from pydfm.cli.main import main
main(sys.argv[1].split())
heavy = {"torch", "sklearn", "scipy", "tqdm", "numpy", "PIL", "matplotlib"}
print(heavy & set(sys.modules))
"""
    assert run_python(code, arguments).stdout.splitlines()[-1] == "set()"


def test_the_options_of_a_command_need_neither_torch_nor_scikit_learn(run_python):
    code = """
import sys
from pydfm.cli.main import main
main(["fit", "--help"])
print({"torch", "sklearn", "scipy", "tqdm", "matplotlib"} & set(sys.modules))
"""
    assert run_python(code).stdout.splitlines()[-1] == "set()"


def test_commands_are_listed_in_their_order(run):
    shown = run("--help").out.decode().partition("Commands:")[2]
    listed = re.findall(r"^  (\w+) ", shown, re.MULTILINE)
    assert listed == [
        "fit",
        "info",
        "add",
        "forget",
        "calibrate",
        "merge",
        "undo",
        "score",
        "watch",
        "report",
        "audit",
        "diff",
        "eval",
        "certify",
        "benchmark",
        "demo",
        "weights",
        "config",
    ]
