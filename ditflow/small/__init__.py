"""The small models that are part of the package, their clips and their training."""

SMALL_MODELS = {"small": "rope", "small-sincos": "sincos", "small-wan": "wan"}  # name: folder in models/
