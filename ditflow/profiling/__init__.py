"""Named ranges around what a run does, and their capture by a profiler."""
