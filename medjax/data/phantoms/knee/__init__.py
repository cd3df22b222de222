"""Compute sagittal magnetic resonance images of knees from outlines of tissues."""
