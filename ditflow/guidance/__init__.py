"""Motion guidance: losses, their targets, the optimisation and injection. Runners compute the gradients."""
