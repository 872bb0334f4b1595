"""Query and key preparation for attention: layer norm over each head, then rotary embedding."""
