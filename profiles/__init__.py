"""Scripts for NVIDIA's profilers, and a roofline of what they record. No other package imports it."""
