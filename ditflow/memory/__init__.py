"""Where weights and activations are while a model computes.

Runs use `plain` and `blockwise`. `streamed` and `tracker` are for the memory plan; no run uses them yet.
"""
