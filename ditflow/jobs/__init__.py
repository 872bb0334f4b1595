"""The jobs that commands run: transfer, resume, decode and flow."""
