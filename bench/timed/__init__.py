"""Timed benchmarks on a CPU: ours and its rivals take turns, their ratio is the figure (bench/README.md)."""
