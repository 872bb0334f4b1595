"""Exact measurements, without a clock, and the committed table that they must agree with."""
