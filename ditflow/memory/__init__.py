"""Where weights and activations are while a model computes.

`plain` and `blockwise` are Runners. `streamed` copies weights to the device block by block, as `ring`
decides; `resident` weights are always there. `block_inputs` and `kept_attention` hold what a forward saves
for backward. `tracker` measures memory and work on `fake_tensors`.
"""
