"""Dense optical flow of videos: where the content of each place goes, measured on the frames alone."""
