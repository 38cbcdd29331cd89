"""Held-out scores in, p-values, thresholds, verdicts and drift out."""
