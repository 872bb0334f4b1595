"""Measure how well a result follows its clip and its prompt."""
