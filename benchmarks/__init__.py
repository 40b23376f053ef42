"""hubbub beside its peers, on one machine, in one run: `python -m benchmarks`, or `make bench`.

docs/performance.md explains the cells and how to read them.
"""
