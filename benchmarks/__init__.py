"""Figures of poolctl beside what they are compared with, measured in one run: `python -m benchmarks`."""
