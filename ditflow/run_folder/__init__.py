"""The run folder: its results, checkpoint, fingerprint and lock."""
