"""Motion flow between the frames of a video, from the head-averaged attention between their patches."""
