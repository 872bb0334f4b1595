"""What a run will take, before it runs: its real code on fake tensors, and the preset that suits it."""
