"""Query and key preparation for attention: norm, then rotary embedding."""
