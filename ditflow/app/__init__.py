"""A local page: choose a clip, a prompt and a model, watch runs, and look at finished ones."""
