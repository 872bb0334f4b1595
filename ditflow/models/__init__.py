"""The one seam to a model. Nothing outside this folder knows a model's class."""
