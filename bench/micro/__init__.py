"""Micro-benchmarks by pytest-benchmark: what one step costs in time. `make micro` runs them.

For a look while one works on a step. Times of different runs do not compare; what a change costs
is told by instructions (bench.instructions), what a server costs by scenarios (bench).
"""
