"""Named ranges around the parts of a run, and their capture by a profiler."""
