"""Measures poolctl and its alternatives in one run: `python -m benchmarks`."""
