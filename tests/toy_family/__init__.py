"""A model family that `ditflow/` does not know: the proof of the model seam, and the example for a new one.

What differs from CogVideoX: text enters by cross-attention, patches are not square, queries and keys are
normed over all heads together, the autoencoder takes 4k + 1 frames, timesteps are floats, and a denoising
step depends on the ones before it. See `docs/adding-a-model.md`.
"""
