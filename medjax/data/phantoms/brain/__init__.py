"""Axial T1-weighted images of heads, painted from outlines of tissues."""
