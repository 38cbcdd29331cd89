"""Print the tables of docs/results.md, or write them."""

import argparse
import sys
import time
from pathlib import Path

import torch

from benchmarks.report import Table, write
from benchmarks.results import adversarial, clean, glassfiber, outliers

_SECTIONS = {
    "glassfiber": glassfiber,
    "clean": clean,
    "outliers": outliers,
    "adversarial": adversarial,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.results", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="where the data is")
    parser.add_argument("--only", nargs="+", choices=_SECTIONS, metavar="NAME")
    parser.add_argument("--threads", type=int, help="torch's; default: its own choice")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables into this file")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    for name in options.only or _SECTIONS:
        start = time.perf_counter()
        tables: dict[str, tuple[str, Table]] = _SECTIONS[name].tables(options.data)
        for title, table in tables.values():
            print(f"\n{title}\n\n{table}", flush=True)
        if options.write:
            write(options.write, tables)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)


main()
