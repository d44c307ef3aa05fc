"""Variables that one equality defines, and that are nowhere else but in the objective.

Canonicalization writes ‖L x − b‖² as yᵀy with rows y = L x − b: unknowns and rows that an engine
can do without, whatever the values of L and b are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cvxlayers.program import ProblemStructure

__all__ = ["definitions"]

# A coefficient below this is not divided by.
LEAST = 1e-3


def definitions(structure: ProblemStructure) -> NDArray[np.intp]:
    """Where A stores the coefficients a of rows a y + Lᵢ x = bᵢ of the zero cone, in the order of
    rows: a is the same for every instance and not small, its column of A has no other entry, and
    that of P none off the diagonal. At most one for a row, so that no y is in another's L."""
    A, P, fixed = structure.A, structure.P, structure.fixed_A
    if fixed is None:
        return np.zeros(0, dtype=np.intp)
    single = np.bincount(A.cols, minlength=structure.n) == 1
    off = P.rows != P.cols
    single[P.rows[off]] = single[P.cols[off]] = False
    with np.errstate(invalid="ignore"):
        usable = single[A.cols] & (A.rows < structure.dims.zero) & (np.abs(fixed) >= LEAST)
    entries = np.flatnonzero(usable)
    # The others of a row are unknowns like all.
    _, first = np.unique(A.rows[entries], return_index=True)
    return entries[first]
