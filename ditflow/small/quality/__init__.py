"""How good the small model is: what its videos show, and how well its blocks see motion."""
