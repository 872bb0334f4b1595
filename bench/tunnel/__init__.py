"""The wind tunnel: what an approximation does to motion, with its own noise (docs/wind-tunnel.md)."""
