"""Write a model file of each kind, with its answers, for `test_fixtures.py`: once, and for ever.

    python tests/io/make_fixtures.py

A file that is there is never written again: a version of pydfm must read what older ones wrote.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import model_kinds

from pydfm.io.model_file import FORMAT

FOLDER = Path(__file__).parent / "fixtures"


def main():
    FOLDER.mkdir(exist_ok=True)
    for kind in model_kinds.KINDS:
        path = FOLDER / f"format{FORMAT}-{kind}.pydfm"
        if path.exists() or path.with_suffix(".npz").exists():
            print(f"{path.name} is there, and stays")
            continue
        dfm = model_kinds.fitted(kind)
        rows = model_kinds.queries_of(dfm)
        found = model_kinds.answers(dfm, rows)
        np.savez_compressed(path.with_suffix(".npz"), queries=rows, **found)
        dfm.save(path)
        print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
