"""CogVideoX 2B and 5B."""
