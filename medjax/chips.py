"""Peak figures of the accelerators that medjax knows, from their makers' data sheets.

Sources: cloud.google.com/tpu/docs (v4, v5e, v5p, v6e, TPU7x) and NVIDIA's data sheets
(dense, without sparsity). Links count what a chip sends in one direction.
"""

import dataclasses
import glob
import os
import re


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip.

    Attributes:
        name: Its short name, ``v6e``.
        kind: Pattern of jax's ``device_kind``.
        tflops: Peak of bfloat16 matrix products, TFLOP/s (the T4: float16).
        hbm_gb_s: Memory bandwidth, GB/s.
        hbm_gb: Memory, GB.
        link_gb_s: What it can send to other chips, GB/s.
    """

    name: str
    kind: str
    tflops: float
    hbm_gb_s: float
    hbm_gb: float
    link_gb_s: float


CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip("v4", r"^TPU v4$", 275, 1228, 32, 150),
        Chip("v5e", r"^TPU v5 ?lite|^TPU v5e", 197, 819, 16, 200),
        Chip("v5p", r"^TPU v5p?$", 459, 2765, 95, 600),
        Chip("v6e", r"^TPU v6 ?lite|^TPU v6e", 918, 1640, 32, 400),
        Chip("H200", r"\bH200\b", 989, 4800, 141, 450),
        Chip("H100", r"\bH100\b(?!.*PCIe)", 989, 3350, 80, 450),
        Chip("A100", r"\bA100\b.*80", 312, 2039, 80, 300),
        Chip("A100-40", r"\bA100\b(?!.*80)", 312, 1555, 40, 300),
        Chip("L4", r"\bL4\b", 121, 300, 24, 32),
        Chip("RTX 4090", r"\bRTX 4090\b", 165, 1008, 24, 32),
        Chip("T4", r"\bT4\b", 65, 320, 16, 16),
    )
}
"""The chips by name."""


def find_chip(device_kind: str) -> Chip | None:
    """Return the chip that jax calls `device_kind`; None if it is unknown."""
    return next(
        (one for one in CHIPS.values() if re.search(one.kind, device_kind)), None
    )


def silence_libtpu() -> None:
    """Keep libtpu from printing errors on a machine without a TPU.

    jax loads libtpu wherever it is installed. Where it finds no TPU, it complains about
    variables that only a TPU's machine sets. To be called before jax starts.
    """
    if not glob.glob("/dev/accel*") and not glob.glob("/dev/vfio/*"):
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v6e-4")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
