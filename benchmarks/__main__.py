"""Print the tables of ratios: `python -m benchmarks --help`."""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import (
    eigensolver,
    extract,
    files,
    fit,
    gpu,
    instruction_sets,
    machine,
    processes,
    runtimes,
    scale,
    score,
    verdicts,
)
from benchmarks.measure import compare
from benchmarks.report import HEADER, Table, rows, write

_SECTIONS = {
    "score": score,
    "fit": fit,
    "eigensolver": eigensolver,
    "extract": extract,
    "runtimes": runtimes,
}
_TABLES: dict[str, tuple[str, Callable[[bool], Table]]] = {
    "instructions": ("Instruction sets", instruction_sets.table),
    "verdicts": ("Verdicts", verdicts.table),
    "files": ("Files to verdicts on a CPU", files.table),
    "gpu": ("Pictures on a GPU", gpu.table),
    "import": ("Import", processes.imports),
    "memory": ("Memory", processes.memory),
    "scale": ("Rows in batches", scale.table),
}


def main() -> None:
    options = _options()
    left_out = [] if options.memory else ["memory", "scale"]
    if not torch.cuda.is_available():
        left_out.append("gpu")
    names = options.only or [n for n in (*_SECTIONS, *_TABLES) if n not in left_out]
    tables = {"machine": ("Machine", machine.table())}
    _show(*tables["machine"])
    for name in names:
        start = time.perf_counter()
        if name in _SECTIONS:
            tables[name] = (_SECTIONS[name].TITLE, _compared(name, options))
        else:
            title, make = _TABLES[name]
            tables[name] = (title, make(options.quick))
        _show(*tables[name])
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    if options.write:
        write(options.write, tables)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = [*_SECTIONS, *_TABLES]
    parser.add_argument("--quick", action="store_true", help="smaller shapes, fewer rounds")
    parser.add_argument("--threads", type=int, nargs="+", help="default: 1 2; 2 with --quick")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument(
        "--memory", action="store_true", help="memory and batches too (4 GB of disk)"
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables into this file")
    options = parser.parse_args()
    options.threads = options.threads or ([2] if options.quick else [1, 2])
    return options


def _compared(name: str, options: argparse.Namespace) -> Table:
    """Run the comparisons of a section, and report on stderr which one is running."""
    section, lines = _SECTIONS[name], []
    per_second = 0
    for comparison in section.comparisons(options.quick, options.threads):
        print(f"{name}: {comparison.work}, threads: {comparison.n_threads}", file=sys.stderr)
        results = compare(comparison, 1.0 if options.quick else 6.0, 2 if options.quick else 3)
        lines += rows(comparison, results)
        per_second = comparison.items
    extra = ("images/s",) if per_second > 1 else ()
    return Table((*HEADER, *extra, *section.NOTES), lines)


def _show(title: str, table: Table) -> None:
    print(f"\n{title}\n\n{table}", flush=True)


main()
