"""hubbub beside its peers, on one machine, in one run: `python -m benchmarks`, or `make bench`.

What is measured and how to read it is in docs/performance.md.
"""
