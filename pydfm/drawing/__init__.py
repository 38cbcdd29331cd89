"""Scores and maps drawn: one colour scale for overlays, and matplotlib's axes. Arrays in."""
