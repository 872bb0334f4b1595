"""The training stages of the small models: autoencoder, decoder, two transformers, and tracking."""
