"""A conic program as diffcp can take it: its quadratic lifted into a second-order cone.

    ½ xᵀP x = min ½ t   over   ‖F x‖² <= t,        P = FᵀF
    ‖F x‖² <= t   ⟺   (t + 1, t - 1, 2 F x) ∈ SOC

The derivative goes through the lifting exactly, without differentiating F, see
`diffcp_operators`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cvxlayers.solvers.scs_form import ScsInstance

__all__ = ["DiffcpProgram", "lift"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class DiffcpProgram:
    """One instance, in SCS's convention, perhaps with a lifted quadratic.

    Attributes
    ----------
    A, b, c, P, cones
        What diffcp is given. P is None, or the upper triangle.
    n : int
        Number of the variables that are ours. The bound t of a lifted quadratic follows them.
    F : sparse matrix or None
        The factor of a lifted quadratic.
    start : int
        First row of the cone that the quadratic was lifted into.
    is_convex : bool
        Whether a lifted quadratic was positive semidefinite; its negative part is left out.
    """

    A: sp.csc_matrix
    b: Array
    c: Array
    P: sp.csc_matrix | None
    cones: Mapping[str, Any]
    n: int
    F: sp.csr_matrix | None = None
    start: int = 0
    is_convex: bool = True

    @property
    def size(self) -> int:
        """Number of rows that the lifting added."""
        return 0 if self.F is None else self.F.shape[0] + 2

    def insert(self, rows: Array, added: Array | None = None) -> Array:
        """Rows of ours, with values (or zeros) for the added ones between them."""
        values = np.zeros(self.size) if added is None else added
        return np.concatenate([rows[: self.start], values, rows[self.start :]])

    def drop(self, rows: Array) -> Array:
        """The rows that are ours: the inverse of `insert`."""
        return np.concatenate([rows[: self.start], rows[self.start + self.size :]])

    def point(self, x: Array, y: Array, s: Array) -> tuple[Array, Array, Array]:
        """The solution of this program that belongs to a solution of ours.

        t = ‖F x‖², and the dual of the added cone is ¼ (t + 1, 1 - t, -2 F x): complementary to
        its slack, with the sum ½ of its first two entries that the cost of t asks for.
        """
        if self.F is None:
            return x, y, s
        Fx = self.F @ x
        t = Fx @ Fx
        dual = np.concatenate([[t + 1, 1 - t], -2 * Fx]) / 4
        slack = np.concatenate([[t + 1, t - 1], 2 * Fx])
        return np.append(x, t), self.insert(y, dual), self.insert(s, slack)


def lift(data: ScsInstance) -> DiffcpProgram:
    """Move the quadratic into a cone.

    F comes from an eigendecomposition of P, on the variables that occur in it. Eigenvalues that
    are zero to rounding are left out.
    """
    n = len(data.q)
    upper = data.P.tocoo()
    used = np.unique(np.concatenate([upper.row, upper.col])[np.tile(upper.data != 0, 2)])
    if not len(used):
        return DiffcpProgram(data.A, data.b, data.q, None, data.cones, n)
    eigenvalues, V = np.linalg.eigh(data.P[np.ix_(used, used)].toarray(), UPLO="U")
    largest = np.abs(eigenvalues).max()
    keep = eigenvalues > 1e-14 * len(used) * largest
    rank = int(keep.sum())
    F = sp.csr_matrix(
        (
            (V[:, keep] * np.sqrt(eigenvalues[keep])).T.ravel(),
            (np.repeat(np.arange(rank), len(used)), np.tile(used, rank)),
        ),
        shape=(rank, n),
    )
    start = data.cones["z"] + data.cones["l"] + sum(data.cones["q"])
    bound = np.zeros((rank + 2, 1))
    bound[:2] = -1.0
    added = sp.hstack([sp.vstack([sp.csr_matrix((2, n)), -2.0 * F]), sp.csr_matrix(bound)])
    A = sp.hstack([data.A, sp.csr_matrix((len(data.b), 1))]).tocsr()
    return DiffcpProgram(
        A=sp.csc_matrix(sp.vstack([A[:start], added, A[start:]])),
        b=np.concatenate([data.b[:start], [1.0, -1.0], np.zeros(rank), data.b[start:]]),
        c=np.append(data.q, 0.5),
        P=None,
        cones={**data.cones, "q": [*data.cones["q"], rank + 2]},
        n=n,
        F=F,
        start=start,
        is_convex=bool(eigenvalues[0] >= -1e-9 * largest),
    )
