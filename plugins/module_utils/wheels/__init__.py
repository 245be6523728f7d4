"""Wheels that are built from source, and SageAttention."""
