"""Linear layers with products in 8 bits, forward and for the gradient of their input."""
