"""Nodes for ComfyUI (V3 API), and the command that installs them."""
