"""Row scales that bring the slack and the dual of every curved cone to one size.

w = s − z loses the smaller of the two to rounding where they differ much in size, and with it the
curvature of the projection. A positive multiple of a cone's rows leaves the cone as it is:

    A/τ, b/τ, s/τ, z τ   with   τ = √(‖s‖/‖z‖) in all rows of a block

is the same problem, in which both have the size √(‖s‖‖z‖). Powers of two do not round.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cvxlayers.derivative.geometry import Geometry
from cvxlayers.program import ConeProgram

__all__ = ["row_scales", "scale_rows"]

Array = NDArray[np.float64]

# Below this ratio a block is well enough balanced as it is.
UNBALANCED = 16.0
# A block whose slack or dual is this small beside the others' is at the apex or inactive.
VANISHING = 1e-6


def row_scales(geometry: Geometry, z: Array, s: Array) -> Array | None:
    """τ for every row, shape (B, m), or None where all are one."""
    cone = geometry.cone
    if cone.elementwise:
        return None
    tau = np.ones_like(s)
    largest_s, largest_z = (np.abs(v).max(axis=1)[:, None] for v in (s, z))
    changed = False
    for group in cone.groups:
        if group.rows.shape[1] == 1:
            continue
        norm_s, norm_z = (np.linalg.norm(v[:, group.rows], axis=2) for v in (s, z))
        meaningful = (norm_s > VANISHING * largest_s) & (norm_z > VANISHING * largest_z)
        with np.errstate(divide="ignore", invalid="ignore"):
            wanted = np.where(meaningful, np.sqrt(norm_s / norm_z), 1.0)
        uneven = np.isfinite(wanted) & (np.abs(np.log2(wanted)) > np.log2(UNBALANCED))
        if uneven.any():
            changed = True
            powers = np.where(uneven, 2.0 ** np.round(np.log2(wanted)), 1.0)
            tau[:, group.rows] = powers[:, :, None]
    return tau if changed else None


def scale_rows(geometry: Geometry, program: ConeProgram, tau: Array) -> ConeProgram:
    """The program with row i divided by τ_i, instance by instance."""
    A = program.A / tau[:, geometry.structure.A.rows]
    return replace(program, A=A, b=program.b / tau)
