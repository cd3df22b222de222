"""Sagittal magnetic resonance images of knees, painted from outlines of tissues."""
