"""The run folder: results, checkpoints, and what tells one run from another."""
