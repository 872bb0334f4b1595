"""How the small model is trained from nothing: a stage each for the autoencoder and the two transformers."""
