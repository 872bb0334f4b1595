"""Where weights and activations are while a model computes.

`plain` and `blockwise` are Runners. `streamed` brings weights to the device block by block, in the order that
`ring` decides; `resident` ones stay there. `block_inputs` and `kept_attention` hold what a forward saves for
its backward. `tracker` measures all of it on fake tensors.
"""
