"""Chest phantoms: frontal radiographs computed from parameters that are known.

They are the data of the demo, and the ground truth of tests: any size, any number, the
same on every machine, with findings that one can ask for.
"""

from medjax.data.phantoms.parameters import (
    ChestParameters,
    Effusion,
    Nodule,
    Pneumothorax,
    draw_parameters,
)
from medjax.data.phantoms.rendering import make_pose, render
from medjax.data.phantoms.source import PhantomSource

__all__ = [
    "ChestParameters",
    "Effusion",
    "Nodule",
    "PhantomSource",
    "Pneumothorax",
    "draw_parameters",
    "make_pose",
    "render",
]
