"""Workflows of ComfyUI: node schemas, conversion to the API format, and checks."""
