"""Where weights and activations are while a model computes.

`plain` and `blockwise` are Runners. `weights` says what they ask of a backbone's weights; `streamed` brings
them block by block, as `ring` decides. `boundaries` and `kept_attention` are what the way down through the
blocks leaves for the way back. `tracker` measures all of it on fake tensors.
"""
