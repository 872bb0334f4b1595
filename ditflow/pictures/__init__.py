"""Drawings of motion flow and of losses."""
