"""Whether false alarms come as often as asked for: `python -m benchmarks.calibration --help`."""
