"""Profiles: where the time of a run goes, as words and pictures. Nothing imports them."""
