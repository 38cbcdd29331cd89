"""How well the false-alarm rate holds: `python -m benchmarks.calibration --help`."""
