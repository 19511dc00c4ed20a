"""The same work by us and by others, side by side in one run: ``python -m tests.benchmarks``."""
