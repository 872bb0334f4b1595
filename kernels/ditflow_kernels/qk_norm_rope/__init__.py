"""Queries and keys made ready for attention: layer norm over each head, then rotary embedding."""
