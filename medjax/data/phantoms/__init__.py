"""Compute phantoms: images with known parameters.

Phantoms are frontal radiographs of chests, sagittal magnetic resonance images of knees
and axial magnetic resonance images of brains. They are the data of the demos and the
ground truth of tests. They have any size, number and requested content, and are the
same on every machine.
"""

from medjax.data.phantoms.brain.parameters import (
    DIAGNOSES,
    VENTRICLE_SHARE_LIMIT,
    BrainParameters,
    draw_brain,
)
from medjax.data.phantoms.brain.rendering import render_brain
from medjax.data.phantoms.chest.parameters import (
    CARDIOMEGALY_RATIO,
    FINDING_SHARE,
    FINDINGS,
    ChestParameters,
    Effusion,
    Nodule,
    Pneumothorax,
    check_findings,
    draw_parameters,
)
from medjax.data.phantoms.chest.rendering import make_pose, render
from medjax.data.phantoms.config import PhantomsConfig
from medjax.data.phantoms.knee.parameters import KneeParameters, draw_knee
from medjax.data.phantoms.knee.rendering import render_knee
from medjax.data.phantoms.source import KINDS, PhantomKind, PhantomSource

__all__ = [
    "CARDIOMEGALY_RATIO",
    "DIAGNOSES",
    "FINDINGS",
    "FINDING_SHARE",
    "KINDS",
    "VENTRICLE_SHARE_LIMIT",
    "BrainParameters",
    "ChestParameters",
    "Effusion",
    "KneeParameters",
    "Nodule",
    "PhantomKind",
    "PhantomSource",
    "PhantomsConfig",
    "Pneumothorax",
    "check_findings",
    "draw_brain",
    "draw_knee",
    "draw_parameters",
    "make_pose",
    "render",
    "render_brain",
    "render_knee",
]
