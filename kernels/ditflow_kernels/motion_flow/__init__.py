"""Motion flow between frames, read off the head-averaged attention between their patches."""
