"""Row scales that bring the slack and the dual of every curved cone to one size.

w = s − z loses the smaller of the two to rounding where they differ much in size, and with it the
curvature of the projection. A positive multiple of a cone's rows leaves the cone as it is:

    A/τ, b/τ, s/τ, z τ   with   τ = √(‖s‖/‖z‖) in all rows of a block

is the same problem, in which both have the size √(‖s‖‖z‖). Powers of two do not round.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cvxlayers.arrays import Array, held, largest, namespace
from cvxlayers.derivative.geometry import Geometry
from cvxlayers.program import ConeProgram

__all__ = ["row_scales", "scale_rows"]

# Below this ratio, a power of two, a block is well enough balanced as it is.
UNBALANCED = 4.0
# A block whose slack or dual is this small beside the others' is at the apex or inactive.
VANISHING = 1e-6


def row_scales(geometry: Geometry, z: Array, s: Array) -> Array | None:
    """τ for every row, shape (B, m), or None where all are one."""
    cone = geometry.cone
    if cone.elementwise:
        return None
    xp = namespace(s)
    tau = xp.ones_like(s)
    largest_s, largest_z = (largest(v)[:, None] for v in (s, z))
    changed = False
    for group in cone.groups:
        if group.rows.shape[1] == 1:
            continue
        norm_s, norm_z = (xp.linalg.vector_norm(v[:, held(group.rows, v)], axis=2) for v in (s, z))
        meaningful = (norm_s > VANISHING * largest_s) & (norm_z > VANISHING * largest_z)
        with np.errstate(divide="ignore", invalid="ignore"):
            wanted = xp.where(meaningful, xp.sqrt(norm_s / norm_z), 1.0)
            exponent = xp.log2(wanted)
        uneven = xp.isfinite(exponent) & (xp.abs(exponent) > UNBALANCED)
        if bool(uneven.any()):
            changed = True
            powers = xp.where(uneven, 2.0 ** xp.round(exponent), 1.0)
            tau[:, held(group.rows, tau)] = powers[:, :, None]
    return tau if changed else None


def scale_rows(geometry: Geometry, program: ConeProgram, tau: Array) -> ConeProgram:
    """The program with row i divided by τ_i, instance by instance."""
    A = program.A / tau[:, held(geometry.structure.A.rows, tau)]
    return replace(program, A=A, b=program.b / tau)
