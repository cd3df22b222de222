"""The embedding of timesteps, shared by all U-Nets."""

import torch
from torch import Tensor


def timestep_embedding(timesteps: Tensor, channels: int) -> Tensor:
    """Return cosines and sines (b c) of timesteps (b): Ho et al., 2020, appendix B."""
    half = channels // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps[:, None].float() * 10000**-exponents
    return torch.cat([angles.cos(), angles.sin()], dim=1)
