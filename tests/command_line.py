"""What the tests of the command line share."""

import csv
import io
import os
import re
import subprocess
import sys

OPTIONS = ("--image-size", "40", "--device", "cpu")


def assert_error(result, says):
    """Assert that a command failed with one line on stderr, in which `says` is found."""
    assert result.code == 2
    assert result.out == b""
    assert re.fullmatch(r"pydfm: [^\n]+\n", result.err)
    assert re.search(says, result.err), result.err


def read_rows(out):
    """Paths and scores of the table that `pydfm score` prints."""
    header, *lines = csv.reader(io.StringIO(out.decode("utf-8", "surrogateescape"), newline=""))
    assert header == ["path", "score", "p_value", "verdict"]
    return [(path, float(score)) for path, score, _, _ in lines]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def start(*arguments, cwd, **options):
    """Run the program away from the source tree, which has no core."""
    return subprocess.Popen(
        [sys.executable, "-m", "pydfm", *arguments],
        env={**os.environ, "PYTHONIOENCODING": "ascii:strict"},
        cwd=cwd,
        **options,
    )
