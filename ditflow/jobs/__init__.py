"""The jobs: transfer and what continues one, and flow."""
