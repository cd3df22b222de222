"""Provide diffusion as pure functions without networks: schedules, losses, samplers."""
