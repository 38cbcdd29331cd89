"""How well pydfm detects, on real data, beside others: `python -m benchmarks.results --help`.

DIR holds what docs/results.md lists. Seeds are fixed; features come from pydfm.
"""
