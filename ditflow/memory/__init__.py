"""Where weights and activations are while a model computes.

`plain` and `blockwise` are Runners. `weights` says what they ask of a backbone's weights, `streamed` brings these
block by block as `ring` decides; `boundaries` and `kept_attention` are what a block-wise descent leaves for its
reverse. `tracker` measures all of it on fake tensors.
"""
