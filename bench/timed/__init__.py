"""Timed benchmarks on a CPU: ours and its rivals take turns, and the result is their ratio."""
