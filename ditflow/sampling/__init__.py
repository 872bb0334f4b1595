"""From noise to clean latents: the denoising loop, its state and its checks for NaN."""
