"""Rows in, distributions out: accumulated rows, subspaces, mixtures, scores. No torch."""
