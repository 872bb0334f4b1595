"""The models, behind the protocols of `protocols`. Nothing outside this folder knows a model's class."""
