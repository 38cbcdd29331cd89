"""pydfm beside its peers, in one run: `python -m benchmarks` for the tables, `pytest benchmarks`.

Every answer is held to a float64 reference before it is timed (`workloads.TOLERANCE`).
"""

import sys
from pathlib import Path

# `python -m benchmarks` puts the repository first on the path, where pydfm/ has no compiled core.
_ROOT = Path(__file__).resolve().parent.parent
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != _ROOT]
