"""Pages and pictures of finished runs."""
