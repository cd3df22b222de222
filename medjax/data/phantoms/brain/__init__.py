"""Compute axial T1-weighted images of heads from outlines of tissues."""
