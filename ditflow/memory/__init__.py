"""Where weights and activations are while a model computes."""
