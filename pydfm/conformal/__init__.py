"""Held-out scores in, p-values, thresholds, verdicts, drift and certificates out."""
