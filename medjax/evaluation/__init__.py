"""Measures of generated images, and the pages that show them."""
