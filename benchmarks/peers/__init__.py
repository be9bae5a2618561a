"""poolctl beside the tools that it replaces, on the same application and in one run: `python -m benchmarks.peers`."""
