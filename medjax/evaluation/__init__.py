"""Measure generated images and draw pages that show them."""
