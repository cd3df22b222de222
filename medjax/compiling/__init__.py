"""Compile a run's programs for chips that need not be there, and read the figures."""
