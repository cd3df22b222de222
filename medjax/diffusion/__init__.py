"""Diffusion as pure functions: schedules, objectives, samplers. No network is known."""
