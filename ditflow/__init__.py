"""Motion transfer for video diffusion transformers (DiTFlow), as a library and a command."""
