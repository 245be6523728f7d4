"""Faults put into real deploys, at random: bounded, seeded, and not part of every run."""
