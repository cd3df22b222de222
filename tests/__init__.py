"""The tests: properties of medjax, in the layout of medjax."""
