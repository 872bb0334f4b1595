"""What families share whose prompts are read by a T5 encoder or one of its kin."""
