"""Frontal chest radiographs, computed from the lengths of rays in solids."""
