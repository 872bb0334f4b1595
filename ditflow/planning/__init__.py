"""Plans a run: measures its real code on fake tensors, and chooses a memory preset."""
