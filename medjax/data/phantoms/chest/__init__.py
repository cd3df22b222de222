"""Compute frontal chest radiographs from the lengths of rays in solids."""
