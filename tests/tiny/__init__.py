"""Tiny models, and the shipped workflows made small enough for them."""
