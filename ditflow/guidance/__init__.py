"""What is optimised and against which target. Runners compute the gradients."""
