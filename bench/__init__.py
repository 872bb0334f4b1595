"""Benchmarks: what a part of the project costs in time and memory, as tables. Nothing imports them."""
