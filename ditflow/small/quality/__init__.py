"""Measure the small models: what their videos show, and how well their blocks read motion."""
