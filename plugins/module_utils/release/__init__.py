"""Releases of ComfyUI on a host: their checkouts, the switch between them, and what shows that one works."""
